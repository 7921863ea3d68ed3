"""Recognise a local path that was given in the wrong place, such as a shard set as the model.

The code that opens a kind of path calls ``other_kind`` when it does not find what it needs. Only names of files are
read, so the check takes no time.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from shards.errors import did_you_mean, printable_line
from shards.storage.endings import ending, is_image_name
from shards.storage.paths import StoragePath, is_remote

#: Kinds of paths, in the words of messages.
SHARD_SET, MODEL, RUN, CHECKPOINT_FOLDER = "a shard set", "a model folder", "a run folder", "a checkpoint of a run"
TARS, IMAGES = "a folder of tar files", "a folder of images"
IMAGE, TABLE, CONFIG, TAR = "an image", "a table", "a configuration", "a tar file"
MANIFEST, TAR_PATTERN = "the manifest of a shard set", "a pattern of tars"
PICKLE, WEIGHTS, ONNX = "a checkpoint file", "a file of weights", "an ONNX file"

#: Ending of a file → its kind.
FILES = {
    **dict.fromkeys((".csv", ".tsv", ".parquet", ".jsonl", ".xlsx"), TABLE),
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".pkl"), PICKLE),
    **dict.fromkeys((".yaml", ".yml"), CONFIG),
    ".safetensors": WEIGHTS, ".onnx": ONNX, ".tar": TAR,
}  # fmt: skip
#: Kind of a path → the option that takes it.
OPTION_OF = {SHARD_SET: "--shards", MODEL: "--model", RUN: "--model", CONFIG: "--config"}
#: Largest number of names that are read per folder to recognise its kind.
LOOK_AT = 1000
#: Largest number of names that are compared with the name of a missing file. The comparison takes 1 to 2 s.
COMPARED = 50_000

_SHARDS, _MODEL = "pass it with --shards", "pass it with --model"
_PREDICT = "predict its genres with `posters predict --model RUN {path}`"
_BUILD = "build a shard set from it with `posters shards build --images {path} --metadata CSV --out SHARDS`"
_FOLDER = "name the folder that contains it"
#: Kind that is needed → kind that was found → remedy.
REMEDIES = {
    MODEL: {
        SHARD_SET: f"{_SHARDS}, and a run folder (RUN) or model folder (RUN/model) with --model",
        RUN: "its training has written no model yet; continue the training with `posters train --resume`",
        CHECKPOINT_FOLDER: "name the run folder instead, such as --model RUN",
        IMAGES: _PREDICT,
        IMAGE: _PREDICT,
        PICKLE: "`posters import --checkpoint {path} --out MODEL` makes a model folder from it, and "
        "`posters train --model.weights {path}` starts a training from it",
        WEIGHTS: "name the folder that contains it and config.json, make a model folder from it with "
        "`posters import --checkpoint {path} --out MODEL`, or start a training from it with "
        "`posters train --model.weights {path}`",
        ONNX: "name the model folder from which it was exported; `posters predict --onnx {path}` runs the file",
        CONFIG: "train a model with `posters train --config {path}`, and name its run folder",
    },
    SHARD_SET: {
        MODEL: f"{_MODEL}, and the shard set with --shards",
        RUN: f"{_MODEL}, and the shard set with --shards",
        IMAGES: _BUILD,
        TABLE: "build a shard set from it with `posters shards build --images DIR --metadata {path} --out SHARDS`",
        TAR: _FOLDER,
        MANIFEST: _FOLDER,
        TAR_PATTERN: "make a shard set from the tars with `posters shards index`, and name the folder of its "
        "manifest.json",
        TARS: "",  # may be an unfinished set; the caller has a message for this case
    },
    IMAGES: {
        TABLE: "pass it with --metadata, and the folder of the images with --images",
        SHARD_SET: _SHARDS,
        MODEL: _MODEL,
        RUN: _MODEL,
        IMAGE: _FOLDER,
        TARS: "make a shard set from it with `posters shards index {path}`",
    },
    IMAGE: {},
    RUN: {MODEL: "name the folder of its training, or open it with `load_model`"},
    TABLE: {
        IMAGES: "pass it with --images, and the table of the genres with --metadata",
        IMAGE: "pass the folder of the images with --images, and the table of the genres with --metadata",
        SHARD_SET: "it already has genres; train with `posters train --shards {path}`",
    },
    PICKLE: {
        MODEL: "it needs no import; use it with `posters predict --model {path}`",
        RUN: "it needs no import; use it with `posters predict --model {path}`",
    },
    CONFIG: {
        RUN: "its configuration is {path}/config.yaml",
        SHARD_SET: _SHARDS,
        TABLE: "build a shard set from it with `posters shards build --images DIR --metadata {path} --out SHARDS`",
        IMAGES: _BUILD,
    },
}


def other_kind(path: StoragePath, wanted: str) -> str | None:
    """Return a message such as "X is a shard set, not a model folder; remedy". None if nothing better is known.

    wanted: the kind that the caller needs, a key of REMEDIES.
    """
    kind = None if is_remote(path) else kind_of(path)
    if kind is None or kind == wanted:
        return None
    remedy = REMEDIES[wanted].get(kind, f"name {wanted} instead")
    if not remedy:
        return None
    return f"{path} is {kind}, not {wanted}; {remedy.format(path=printable_line(str(path)))}"


def kind_of(path: Path) -> str | None:
    """Return the kind of a file or folder. None if it does not exist or is of no known kind."""
    if path.is_file():
        if path.name == "manifest.json":
            return MANIFEST
        return IMAGE if is_image_name(path.name) else FILES.get(ending(path.name))
    names = _names(path)
    if names is None:
        return TAR_PATTERN if path.name.endswith(".tar") and set(path.name) & set("{*?[") else None
    for kind, marks in (
        (SHARD_SET, {"manifest.json"}),
        (MODEL, {"config.json", "labels.json"}),
        (MODEL, {"config.json", "model.safetensors"}),
        (RUN, {"config.yaml", "checkpoints"}),
        (RUN, {"config.yaml", "model"}),
        (CHECKPOINT_FOLDER, {"state.pt"}),
    ):
        if marks <= names:
            return kind
    if any(map(is_image_name, names)):
        return IMAGES
    if "config.yaml" in names:  # a training that stopped before its first checkpoint
        return RUN
    if any(name.endswith(".tar") for name in names):
        return TARS
    if any(is_image_name(inner) for name in sorted(names)[:20] for inner in _names(path / name) or ()):
        return IMAGES
    return None


def near_name(path: Path) -> str:
    """Return the end of the message about a missing path, which suggests a similar name in its folder."""
    return did_you_mean(path.name, _names(path.parent, COMPARED) or ())


def _names(folder: Path, most: int = LOOK_AT) -> set[str] | None:
    """Return at most ``most`` names in a folder. None if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in itertools.islice(entries, most)}
    except OSError:
        return None
