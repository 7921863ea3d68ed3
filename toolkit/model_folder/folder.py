"""Write and read RUN/model, the model folder. A training writes it, and all later commands read it.

model.safetensors      weights
config.json            timm's hub format, with the preprocessing
labels.json            genres and their fingerprint; thresholds and calibration with their origin
README.md              model card
metrics-SPLIT.json     metrics of a split
predictions-SPLIT.npz  ids, logits, targets and fingerprints of the split (split_outputs.py)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from shards.dataset.labels import LabelSet
from shards.errors import UserError, one_line
from shards.storage.files import PARTIAL, flush, flush_tree, sha256_file, write_json
from shards.storage.kinds import MODEL, other_kind
from shards.storage.remote_files import unique_name
from toolkit.config.extensions import is_place, named_in_file
from toolkit.config.model_files import (
    AGAIN,
    CONFIG,
    LABELS,
    ToolkitFile,
    check_agreement,
    read_as,
    read_config,
    read_labels,
)
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.metrics.helpers import FloatArray
from toolkit.models.factory import build_model, clean_state, size_argument
from toolkit.models.heads import HeadSpec
from toolkit.models.tensor_files import load_tensors, read_header, require_finite, require_fit

WEIGHTS = "model.safetensors"
NEEDED = (CONFIG, LABELS, WEIGHTS)
OWN_KEY = "poster_toolkit"  # key of this toolkit in config.json. timm ignores it.
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")
#: Keys of timm's ``pretrained_cfg`` that are not saved: the origin of the weights, and values for another input size.
LEFT_OUT = (
    "url", "file", "hf_hub_id", "hf_hub_filename", "source", "label_offset", "architecture",
    "test_input_size", "test_crop_pct", "pool_size",
)  # fmt: skip
#: Keys of labels.json that the user writes by hand.
BY_USER = ("title", "noun")
#: timm's names for the values of `Preprocessing.fit`.
CROP_MODES = {"crop": "center", "stretch": "squash"}


@dataclass
class ModelFolder:
    """A loaded model. Use it as ``preprocessing.normalize(images)`` → ``model`` → ``decisions``."""

    model: nn.Module
    labels: LabelSet
    decisions: Decisions
    """Calibration and thresholds, chosen on validation."""
    preprocessing: Preprocessing
    config: dict[str, Any]
    path: Path

    @property
    def thresholds(self) -> FloatArray:
        """(G,) thresholds. A genre is predicted if its calibrated probability is at least its threshold."""
        return self.decisions.thresholds

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return self.config[OWN_KEY]["weights_sha256"]


def save_model_folder(
    folder: Path,
    model: nn.Module,
    head: HeadSpec,
    labels: LabelSet,
    decisions: Decisions,
    preprocessing: Preprocessing,
    facts: dict[str, Any],
    metrics: dict[str, dict[str, Any]],
    state: dict[str, torch.Tensor] | None = None,
) -> str:
    """Write a complete model folder, then replace any older folder by it. Returns the SHA-256 of the weights.

    ``model`` must be unwrapped (no DDP, no compile). ``facts``: more values for OWN_KEY in config.json. ``metrics``:
    split → content of metrics-SPLIT.json. If ``model`` is sharded, ``state`` has the complete weights on the CPU.
    On return the folder is flushed to the disk. Raises UserError or OSError if the folder cannot be written. An
    incomplete new folder is deleted.
    """
    from toolkit.model_folder.card import write_card

    with replacing(folder, _older_path(folder)) as fresh:
        try:
            weights = clean_state(model) if state is None else state
            save_file(weights, fresh / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # safetensors raises it for a full disk
            raise UserError("path-unwritable", f"the model cannot be written to {folder}: {one_line(error)}") from None
        write_labels(fresh, labels, decisions)
        # safetensors allows only the owner to read the file. Give it the mode of the other files.
        os.chmod(fresh / WEIGHTS, (fresh / LABELS).stat().st_mode)
        described = {name: value for name, value in asdict(head).items() if name != "options" or value}
        ours = {"head": described, "weights_sha256": sha256_file(fresh / WEIGHTS), **facts}
        write_json(fresh / CONFIG, hub_config(model, labels, preprocessing, ours))
        for split, values in metrics.items():
            write_json(fresh / f"metrics-{split}.json", values)
        write_card(fresh)
    digest: str = ours["weights_sha256"]
    return digest


@contextlib.contextmanager
def replacing(folder: Path, aside: Path) -> Iterator[Path]:
    """Yield a new folder. When the block ends, rename the new folder to ``folder``, or delete it after an error.

    An older folder that is not empty is kept at ``aside`` until the new folder is on the disk under its final name.
    """
    fresh = folder.with_name(unique_name(folder.name, PARTIAL))
    with contextlib.ExitStack() as otherwise:
        otherwise.callback(shutil.rmtree, fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        flush_tree(fresh)
        older = folder.is_dir() and any(folder.iterdir())
        if older:
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)
        os.replace(fresh, folder)
        otherwise.pop_all()
    flush(folder.parent)
    if older:
        shutil.rmtree(aside, ignore_errors=True)


def _older_path(folder: Path) -> Path:
    """Return the path at which the older folder is kept while the new folder is renamed."""
    return folder.with_name(f"{folder.name}.old")


def write_labels(folder: Path, labels: LabelSet, decisions: Decisions, source: Path | None = None) -> None:
    """Write labels.json, atomically. Keep the words that the user wrote by hand into the earlier file.

    ``source``: the folder with the earlier file, if it is another one.
    """
    if len(decisions.thresholds) != len(labels):
        raise ValueError(f"{len(decisions.thresholds)} thresholds for {len(labels)} genres")
    names: dict[str, Any] = {"genres": list(labels.genres), "fingerprint": labels.fingerprint}
    earlier = source or folder
    if (earlier / LABELS).exists():
        raw = read_labels(earlier)[1]
        names |= {key: raw[key] for key in BY_USER if key in raw}
    write_json(folder / LABELS, {**names, **decisions.to_dict()})


def recover_model_folder(folder: Path) -> None:
    """Repair the model folder of a killed run: restore the older folder if there is no new folder. Delete leftovers."""
    old = _older_path(folder)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    elif (folder / CONFIG).exists():  # the new folder is complete, so the older folder is not needed
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.parent.glob(f"{folder.name}.*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


def hub_config(model: Any, labels: LabelSet, preprocessing: Preprocessing, ours: dict[str, Any]) -> dict[str, Any]:
    """Return config.json in timm's format, for ``create_model('local-dir:...')``. ``ours``: values for OWN_KEY."""
    size = preprocessing.image_size
    native = {
        k: v
        for k, v in dict(model.pretrained_cfg).items()
        if k not in LEFT_OUT and isinstance(v, (str, int, float, list, tuple))
    }
    native.update(
        custom_load=False,
        num_classes=len(labels),
        input_size=[3, size, size],
        fixed_input_size=bool(native.get("fixed_input_size", False)),
        interpolation="bilinear",
        crop_pct=1.0 if preprocessing.fit == "stretch" else preprocessing.crop_pct,
        crop_mode=CROP_MODES[preprocessing.fit],
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
    )
    return {
        "architecture": model.pretrained_cfg["architecture"],
        "num_classes": len(labels),
        "num_features": model.num_features,
        "label_names": list(labels.genres),
        "model_args": size_argument(model.pretrained_cfg["architecture"], preprocessing.image_size),
        "pretrained_cfg": native,
        OWN_KEY: ours,
    }


def load_labels(folder: Path) -> tuple[LabelSet, Decisions]:
    """Read the genres and decisions of a model folder. Raises UserError if labels.json is absent or inconsistent."""
    found, raw = read_labels(folder)
    return LabelSet(tuple(found.genres)), Decisions.from_dict(raw, len(found.genres), folder / LABELS)


def load_model_folder(folder: Path) -> ModelFolder:
    """Load a model folder onto the CPU, in evaluation mode. Raises UserError for missing or wrong files.

    The folder may come from an untrusted source. Its files cannot run code, start downloads, or make this function use
    much memory: sizes and shapes are checked first. A head of the form MODULE:CLASS is built only if the user has
    named, registered or trusted it (toolkit/config/extensions.py).
    """
    if not (folder / CONFIG).is_file() and (wrong := other_kind(folder, MODEL)):
        raise UserError("model-missing", wrong)
    if not folder.is_dir():
        raise UserError("model-missing", f"no model folder at {folder}; `posters train` writes one to RUN/model")
    for name in NEEDED:
        if not (folder / name).is_file():
            raise UserError("model-missing", f"the model folder {folder} lacks {name}; {_remedy(folder, name)}")
    labels, decisions = load_labels(folder)
    config, raw = read_config(folder)
    check_agreement(config, labels.genres, folder)
    ours, cfg = config.poster_toolkit, config.pretrained_cfg
    fit = {mode: fit for fit, mode in CROP_MODES.items()}[cfg.crop_mode]
    preprocessing = Preprocessing(cfg.input_size[1], cfg.crop_pct, cfg.mean, cfg.std, fit)
    head = HeadSpec(ours.head.kind, tuple(ours.head.hidden), ours.head.dropout, ours.head.members, ours.head.options)
    if is_place(head.kind):
        named_in_file("head", head.kind, folder)
    if sha256_file(folder / WEIGHTS) != ours.weights_sha256:
        raise UserError(
            "model-damaged",
            f"{folder / WEIGHTS} is damaged or was replaced: its sha256 differs from the value in {CONFIG}; {AGAIN}",
        )
    header = read_header(folder / WEIGHTS)
    if len(header) < head.least_tensors:
        raise UserError(
            "model-damaged",
            f"{folder / WEIGHTS} does not fit {CONFIG}: it has {len(header)} tensors, but the head alone needs "
            f"{head.least_tensors}; {AGAIN}",
        )
    size = preprocessing.image_size
    with torch.device("meta"):  # shapes only, no memory
        network = build_model(config.architecture, len(labels), head, size)
    require_fit(header, network, folder / WEIGHTS, CONFIG)
    state = load_tensors(folder / WEIGHTS)
    require_finite(state, folder / WEIGHTS)
    model = build_model(config.architecture, len(labels), head, size)
    model.load_state_dict(state, strict=True)
    model.eval()
    return ModelFolder(model, labels, decisions, preprocessing, raw, folder)


def read_best(folder: Path) -> tuple[ToolkitFile, Any]:
    """Return two parts of a model folder's config.json: this toolkit's keys, and the training's configuration or None.

    Raises UserError if a file is missing or damaged.
    """
    for name in NEEDED:
        if not (folder / name).is_file():
            raise UserError("model-missing", f"the model folder {folder} lacks {name}")
    config, raw = read_config(folder)
    ours = config.poster_toolkit
    try:
        digest = sha256_file(folder / WEIGHTS)
    except OSError as error:
        raise UserError("path-unreadable", one_line(error)) from None
    if digest != ours.weights_sha256:
        problem = f"{folder / WEIGHTS} is damaged: its sha256 differs from the value in {CONFIG}"
        raise UserError("model-damaged", problem)
    return ours, raw[OWN_KEY].get("training_config")


def _remedy(folder: Path, missing: str) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if missing == LABELS and OWN_KEY not in read_as(folder / CONFIG, dict, "model config", AGAIN)[1]:
        return "`posters import` makes a model folder from a folder of timm"
    if missing != WEIGHTS or not pickles:
        return "copy the whole folder, or train again"
    return (
        f"{pickles[0]} is a pickle, which may run any code and is therefore not read. `posters import` makes a model "
        f"folder from a checkpoint without running code"
    )
