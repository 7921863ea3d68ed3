"""What already lies in a build's folder: finished shards of this very build, to be kept, or another's, to be spared."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence

from shards.build.pack import PackTask, describe, sample_key
from shards.build.split import SPLITS
from shards.build.tar_samples import read_members
from shards.dataset.index import SUFFIX, index_path, read_index, tar_path
from shards.dataset.manifest import Shard
from shards.errors import UserError
from shards.storage.files import local_copy, names_in
from shards.storage.paths import StoragePath

OWN_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.tar")


class OtherShards(UserError):
    """The folder holds shards of another build, or somebody's own tars: nothing is overwritten silently."""

    def __init__(self, out: StoragePath, tar: str, why: str) -> None:
        remedy = "choose another --out, or pass --overwrite to replace them"
        super().__init__("path-exists", f"{out} already holds other shards ({tar} {why}); {remedy}")


def find_finished(
    out: StoragePath, tasks: Sequence[PackTask], overwrite: bool
) -> tuple[dict[str, Shard], list[PackTask], list[StoragePath]]:
    """(finished shards by name, tasks to do, strangers' indexes to delete). Raises OtherShards unless ``overwrite``."""
    planned = {index_path(task.tar) for task in tasks}
    # A killed build may have left a tar without its index; under our names it would pass for one of this set.
    names = names_in(out)
    present = {index_path(out / name) for name in names if OWN_NAME.fullmatch(name)}
    foreign = sorted((present | {out / name for name in names if name.endswith(SUFFIX)}) - planned)
    if foreign and not overwrite:
        raise OtherShards(out, tar_path(foreign[0]).name, "is not of this build")
    finished: dict[str, Shard] = {}
    replaced = (UserError,) if overwrite else ()
    for task in tasks:
        with contextlib.suppress(*replaced):
            if done := finished_shard(task, names):
                finished[task.name] = done
    return finished, [task for task in tasks if task.name not in finished], foreign


def holds_this_build(out: StoragePath, tasks: Sequence[PackTask]) -> bool:
    """Whether ``out`` holds shards of this very build, and none of another."""
    with contextlib.suppress(UserError):
        return bool(find_finished(out, tasks, overwrite=False)[0])
    return False


def finished_shard(task: PackTask, names: Collection[str] | None = None) -> Shard | None:
    """The shard's facts if this very task was finished before, None if it is to be (re)done.

    ``names`` are all names in the folder, for who has them. Raises OtherShards if the shard's name is taken by one
    with another content.
    """
    names = names_in(task.out) if names is None else names
    there = task.tar.name in names
    if index_path(task.tar).name not in names:
        if there and not _left_by_killed_build(task):
            raise OtherShards(task.out, task.tar.name, "has no index and other samples")
        return None
    table, facts = read_index(task.tar)
    if facts.get("plan") != task.plan():
        raise OtherShards(task.out, task.tar.name, "was built from other posters or options")
    digest = facts.get("sha256")
    whole = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) and there
    if not whole or task.tar.stat().st_size != facts.get("bytes"):
        return None
    # An index that was changed, so that it names other samples or labels, is made again.
    labels = [task.labels.columns(sample.genres) for sample in task.samples]
    if table["id"].to_pylist() != [s.id for s in task.samples] or table["labels"].to_pylist() != labels:
        return None
    return describe(task.tar.name, task.split, table, facts, len(task.labels))


def _left_by_killed_build(task: PackTask) -> bool:
    """Whether a tar without an index is this task's own: the build was killed between the two."""
    try:
        with local_copy(task.tar) as tar:
            keys = [member.key for member in read_members(tar)]
    except UserError:
        return False
    there = set(keys)
    planned = [sample_key(sample.id) for sample in task.samples]
    if task.text:  # those that could not be cleaned are not there
        planned = [key for key in planned if key in there]
    return keys == planned
