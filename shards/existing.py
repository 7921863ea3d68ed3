"""What already lies in a build's folder: finished shards of this very build, to be kept, or another's, to be spared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from shards.errors import UserError
from shards.index import SUFFIX, index_path, list_tars, read_index, read_members, tar_path
from shards.manifest import Shard
from shards.pack import PackTask, describe, sample_key
from shards.split import SPLITS

OWN_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.tar")


class OtherShards(UserError):
    """The folder holds shards of another build, or somebody's own tars: nothing is overwritten silently."""

    def __init__(self, out: Path, tar: str, why: str) -> None:
        super().__init__(
            f"{out} already holds other shards ({tar} {why}); choose another --out, or pass --overwrite to "
            f"replace them"
        )


def survey(
    out: Path, tasks: Sequence[PackTask], overwrite: bool
) -> tuple[dict[str, Shard], list[PackTask], list[Path]]:
    """(finished shards by name, tasks still to do, indexes of strangers whose tars are to go).

    Raises OtherShards unless ``overwrite`` allows strangers to be replaced.
    """
    planned = {index_path(task.tar) for task in tasks}
    # A killed build may have left a tar without its index; under our names it would pass for one of this set.
    present = {index_path(tar) for tar in list_tars(out) if OWN_NAME.fullmatch(tar.name)}
    strangers = sorted((present | set(out.glob(f"*{SUFFIX}"))) - planned)
    if strangers and not overwrite:
        raise OtherShards(out, tar_path(strangers[0]).name, "is not of this build")
    finished: dict[str, Shard] = {}
    for task in tasks:
        try:
            if done := finished_shard(task):
                finished[task.name] = done
        except UserError:
            if not overwrite:
                raise
    return finished, [task for task in tasks if task.name not in finished], strangers


def finished_shard(task: PackTask) -> Shard | None:
    """The shard's facts if this very task was finished before, None if it is to be (re)done.

    Raises OtherShards if the name is taken by a shard with another content.
    """
    if not index_path(task.tar).exists():
        if task.tar.exists() and not _left_by_a_kill(task):
            raise OtherShards(task.out, task.tar.name, "has no index and other samples")
        return None
    table, facts = read_index(task.tar)
    if facts.get("plan") != task.plan():
        raise OtherShards(task.out, task.tar.name, "was built from other posters or options")
    if not task.tar.exists() or task.tar.stat().st_size != facts["bytes"]:
        return None
    return describe(task.name, task.split, table, facts, len(task.labels))


def _left_by_a_kill(task: PackTask) -> bool:
    """Whether a tar without an index is this task's own: the build was killed between the two."""
    try:
        keys = [member.key for member in read_members(task.tar)]
    except UserError:
        return False
    return keys == [sample_key(sample.id) for sample in task.samples]
