"""`posters import`: make a model folder from a checkpoint of timm or of the earlier training script.

    posters import --checkpoint model_best.pth.tar --classes classes.txt --out MODEL

legacy_checkpoint.py and timm_checkpoint.py read the checkpoints, and imported.py writes the folder.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from shards.errors import UserError
from shards.storage.kinds import PICKLE, other_kind
from toolkit.config.model_files import CONFIG, LABELS
from toolkit.export.hub import fetch_model
from toolkit.export.imported import Imported, require_new_folder, save_imported
from toolkit.export.legacy_checkpoint import read_legacy
from toolkit.export.options import ImportOptions
from toolkit.export.timm_checkpoint import read_timm, read_timm_folder
from toolkit.models.safe_unpickle import safe_load
from toolkit.models.tensor_files import load_tensors, read_header

HUB, LOCAL = re.compile(r"hf://|hf[-_]hub:"), "local-dir:"


def run_import(options: ImportOptions) -> int:
    """Read a checkpoint and write the model folder. Returns the exit status."""
    require_new_folder(options.out)
    save_imported(options.out, read_model(options))
    return 0


def read_model(options: ImportOptions) -> Imported:
    """Return the model of a file, a folder or a repository. Raises UserError if it cannot be a model folder."""
    if hub := HUB.match(options.checkpoint):
        repository, _, revision = options.checkpoint[hub.end() :].partition("@")
        return read_timm_folder(fetch_model(repository, revision or None), options)
    path = Path(options.checkpoint.removeprefix(LOCAL)).expanduser()
    if path.is_dir():
        if (path / LABELS).is_file() or not (path / CONFIG).is_file():
            wrong = other_kind(path, PICKLE) or f"{path} has no {CONFIG}: name a file of weights, or a folder of timm"
            raise UserError("path-unreadable", wrong)
        return read_timm_folder(path, options)
    if path.suffix == ".safetensors" and path.is_file():
        read_header(path)
        content: Any = load_tensors(path)
    else:
        content = safe_load(path, "checkpoint")
    if not isinstance(content, dict) or "model_state_dict" not in content:
        return read_timm(content, path, options)
    own = [field.name for field in fields(options) if field.default not in (MISSING, getattr(options, field.name))]
    if own:
        raise UserError(
            "option-conflict",
            f"{path} is a checkpoint of the earlier training script, which has all values: leave "
            f"--{own[0].replace('_', '-')} out",
        )
    return read_legacy(content, path)
