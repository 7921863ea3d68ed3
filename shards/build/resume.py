"""What already lies in a build's folder: finished shards of this very build, to be kept, or another's, to be spared."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import msgspec
import pyarrow as pa

from shards.build.pack import PackTask, describe, sample_key
from shards.build.split import SPLITS
from shards.build.tar_samples import read_members
from shards.dataset.index import SUFFIX, index_path, read_index, tar_path
from shards.dataset.manifest import Shard
from shards.errors import UserError
from shards.schema import Sha256
from shards.storage.files import local_copy, names_in
from shards.storage.paths import Place

OWN_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.tar")


class OtherShards(UserError):
    """The folder holds shards of another build, or somebody's own tars: nothing is overwritten silently."""

    def __init__(self, out: Place, tar: str, why: str) -> None:
        super().__init__(
            f"{out} already holds other shards ({tar} {why}); choose another --out, or pass --overwrite to replace them"
        )


def survey(
    out: Place, tasks: Sequence[PackTask], overwrite: bool
) -> tuple[dict[str, Shard], list[PackTask], list[Place]]:
    """(finished shards by name, tasks still to do, indexes of strangers whose tars are to go).

    Raises OtherShards unless ``overwrite`` allows strangers to be replaced.
    """
    planned = {index_path(task.tar) for task in tasks}
    # A killed build may have left a tar without its index; under our names it would pass for one of this set.
    names = names_in(out)
    present = {index_path(out / name) for name in names if OWN_NAME.fullmatch(name)}
    strangers = sorted((present | {out / name for name in names if name.endswith(SUFFIX)}) - planned)
    if strangers and not overwrite:
        raise OtherShards(out, tar_path(strangers[0]).name, "is not of this build")
    finished: dict[str, Shard] = {}
    for task in tasks:
        try:
            if done := finished_shard(task, names):
                finished[task.name] = done
        except UserError:
            if not overwrite:
                raise
    return finished, [task for task in tasks if task.name not in finished], strangers


def holds(out: Place, tasks: Sequence[PackTask]) -> bool:
    """Whether ``out`` holds shards of this very build, and none of another."""
    try:
        return bool(survey(out, tasks, overwrite=False)[0])
    except UserError:
        return False


def finished_shard(task: PackTask, names: Collection[str] | None = None) -> Shard | None:
    """The shard's facts if this very task was finished before, None if it is to be (re)done.

    ``names`` are all names in the folder, for who has them. Raises OtherShards if the shard's name is taken by one
    with another content.
    """
    names = names_in(task.out) if names is None else names
    there = task.tar.name in names
    if index_path(task.tar).name not in names:
        if there and not _left_by_a_kill(task):
            raise OtherShards(task.out, task.tar.name, "has no index and other samples")
        return None
    table, facts = read_index(task.tar)
    if facts.get("plan") != task.plan():
        raise OtherShards(task.out, task.tar.name, "was built from other posters or options")
    whole = there and _is_digest(facts.get("sha256")) and task.tar.stat().st_size == facts.get("bytes")
    if not whole or not _says_what_was_packed(task, table):
        return None
    return describe(task.tar.name, task.split, table, facts, len(task.labels))


def _is_digest(value: object) -> bool:
    try:
        return bool(msgspec.convert(value, Sha256))
    except msgspec.ValidationError:
        return False


def _says_what_was_packed(task: PackTask, table: pa.Table) -> bool:
    """Whether an index names the task's samples and labels, in their order: one that was changed is made again."""
    labels = [task.labels.columns(sample.genres) for sample in task.samples]
    return table["id"].to_pylist() == [s.id for s in task.samples] and table["labels"].to_pylist() == labels


def _left_by_a_kill(task: PackTask) -> bool:
    """Whether a tar without an index is this task's own: the build was killed between the two."""
    try:
        with local_copy(task.tar) as tar:
            keys = [member.key for member in read_members(tar)]
    except UserError:
        return False
    planned = [sample_key(sample.id) for sample in task.samples]
    if task.text:  # those that could not be cleaned are not there
        planned = [key for key in planned if key in set(keys)]
    return keys == planned
