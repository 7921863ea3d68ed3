"""_info.json of a shard set, the list of splits and tars that timm's reader of WebDataset tars needs.

`timm.data.create_dataset("wds/", root=SHARDS, split="train", ...)` reads it. This toolkit itself reads manifest.json.
"""

from __future__ import annotations

import logging
from typing import Any

from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.storage.files import read_json, remove_file, write_json
from shards.storage.paths import StoragePath

log = logging.getLogger(__name__)

NAME = "_info.json"
#: Key of the file that timm ignores. A file without this key belongs to another tool and is never replaced.
MADE_BY = {"made_by": "poster-toolkit"}


def write_timm_info(folder: StoragePath, manifest: Manifest) -> None:
    """Write _info.json beside the tars, whose names are relative to ``folder``. Keep a file of another tool.

    The bytes depend only on the manifest. A file with the same content is not written again. Nothing is written if the
    tars are in another place than the manifest, because timm reads tars beside the file.
    """
    if manifest.tars is not None:
        return
    found, wanted = _read(folder), _content(manifest)
    if found is not None and not _is_ours(found):
        log.warning("%s is kept, because another tool wrote it", folder / NAME)
    elif found != wanted:
        write_json(folder / NAME, wanted)


def remove_timm_info(folder: StoragePath) -> None:
    """Delete the _info.json of an unfinished set, so that timm does not read its tars. Keep a file of another tool."""
    if _is_ours(_read(folder)):
        remove_file(folder / NAME)


def timm_info_problem(folder: StoragePath, manifest: Manifest) -> str:
    """Return a message if _info.json does not describe the set. Empty if it does, is absent, or is of another tool."""
    found = _read(folder)
    if not _is_ours(found) or found == _content(manifest):
        return ""
    return f"{NAME}: it describes other shards than the manifest; run `posters shards index` to write it again"


def _content(manifest: Manifest) -> dict[str, Any]:
    splits = {
        split: {
            "name": split,
            "filenames": [shard.name for shard in shards],
            "shard_lengths": [shard.samples for shard in shards],
            "num_samples": sum(shard.samples for shard in shards),
        }
        for split, shards in manifest.by_split.items()
    }
    return {**MADE_BY, "splits": splits}


def _is_ours(found: Any) -> bool:
    return isinstance(found, dict) and found.items() >= MADE_BY.items()


def _read(folder: StoragePath) -> Any:
    """Return the content of _info.json. None if it is absent, "" if it cannot be read."""
    if not (folder / NAME).exists():
        return None
    try:
        return read_json(folder / NAME, NAME)
    except UserError:
        return ""  # not a file of this module
