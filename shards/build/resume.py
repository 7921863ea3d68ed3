"""Find the shards that an earlier run of the same build finished. Refuse to overwrite the shards of another build."""

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
    """Raised if the output folder contains shards of another build and --overwrite was not given."""

    def __init__(self, out: StoragePath, tar: str, why: str) -> None:
        remedy = "choose another --out, or pass --overwrite to replace them"
        super().__init__("path-exists", f"{out} already contains other shards ({tar} {why}); {remedy}")


def find_finished(
    out: StoragePath, tasks: Sequence[PackTask], overwrite: bool
) -> tuple[dict[str, Shard], list[PackTask], list[StoragePath]]:
    """Return the finished shards by name, the unfinished tasks, and the index paths of other builds' shards.

    Raises OtherShards if ``overwrite`` is false and the folder has shards of another build.
    """
    planned = {index_path(task.tar) for task in tasks}
    # A killed build may have left a tar without an index. Such a tar counts as a shard because of its name.
    names = names_in(out)
    present = {index_path(out / name) for name in names if OWN_NAME.fullmatch(name)}
    foreign = sorted((present | {out / name for name in names if name.endswith(SUFFIX)}) - planned)
    if foreign and not overwrite:
        raise OtherShards(out, tar_path(foreign[0]).name, "is not part of this build")
    finished: dict[str, Shard] = {}
    replaced = (UserError,) if overwrite else ()
    for task in tasks:
        with contextlib.suppress(*replaced):
            if done := finished_shard(task, names):
                finished[task.name] = done
    return finished, [task for task in tasks if task.name not in finished], foreign


def is_same_build(out: StoragePath, tasks: Sequence[PackTask]) -> bool:
    """Return whether ``out`` has finished shards of these tasks and no other shards."""
    with contextlib.suppress(UserError):
        return bool(find_finished(out, tasks, overwrite=False)[0])
    return False


def finished_shard(task: PackTask, names: Collection[str] | None = None) -> Shard | None:
    """Return the shard if an earlier run finished the same task. None if the task must run.

    ``names`` are all file names in ``out``. If None, the folder is listed. Raises OtherShards if another build wrote
    the tar.
    """
    names = names_in(task.out) if names is None else names
    there = task.tar.name in names
    if index_path(task.tar).name not in names:
        if there and not _left_by_killed_build(task):
            raise OtherShards(task.out, task.tar.name, "has other samples and no index")
        return None
    table, facts = read_index(task.tar)
    if facts.get("plan") != task.plan():
        raise OtherShards(task.out, task.tar.name, "was built from other posters or options")
    digest = facts.get("sha256")
    whole = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) and there
    if not whole or task.tar.stat().st_size != facts.get("bytes"):
        return None
    # An index with other samples or labels was changed after the build: write the shard again.
    labels = [task.labels.columns(sample.genres) for sample in task.samples]
    if table["id"].to_pylist() != [s.id for s in task.samples] or table["labels"].to_pylist() != labels:
        return None
    return describe(task.tar.name, task.split, table, facts, len(task.labels))


def _left_by_killed_build(task: PackTask) -> bool:
    """Return whether a tar without an index has the samples of this task. If so, an earlier run was killed."""
    try:
        with local_copy(task.tar) as tar:
            keys = [member.key for member in read_members(tar)]
    except UserError:
        return False
    there = set(keys)
    planned = [sample_key(sample.id) for sample in task.samples]
    if task.text:  # posters that could not be cleaned are not in the tar
        planned = [key for key in planned if key in there]
    return keys == planned
