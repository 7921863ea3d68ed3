"""Read a checkpoint of the earlier training script, which trained torchvision's ResNets.

timm's ResNets have the same weight names and return the same logits. models/safe_unpickle.py reads the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from shards.dataset.labels import LabelSet
from shards.errors import Code, UserError, one_line
from toolkit.config.values import MAX_HIDDEN, MAX_SIDE, MAX_WIDTH
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.export.imported import Imported
from toolkit.metrics.helpers import FloatArray, sigmoid
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec
from toolkit.models.safe_unpickle import PickledBinarizer, to_array, to_number
from toolkit.models.tensor_files import require_finite

WHAT = "checkpoint of the earlier training script"
ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
#: Normalisation of torchvision, which the script used.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Prefixes in the names of weights, from wrappers and from the script's attribute ``model``.
PREFIXES = re.compile(r"^((module|_orig_mod|model)\.)+")

#: Exceptions that can occur when an untrusted value is converted to numbers.
NOT_NUMBERS = (ValueError, TypeError, OverflowError)
#: Longest name of a genre, in characters.
MAX_LETTERS = 4096

State = dict[str, torch.Tensor]


class Unlike(UserError):
    """Raised for a value that the earlier script never writes."""

    def __init__(self, path: Path, problem: str, code: Code = "model-damaged") -> None:
        super().__init__(code, f"{path}: {problem}")


@dataclass(frozen=True)
class Checkpoint:
    """The values of the script's file that the model folder needs."""

    state: State
    """Weights under torchvision's names."""
    labels: LabelSet
    image_size: int
    decisions: Decisions
    epoch: int


def read_legacy(content: dict[Any, Any], path: Path) -> Imported:
    """Detect the architecture in the content of a file and return the model. Raises UserError if it does not fit."""
    checkpoint = read_checkpoint(content, path)
    labels, side = checkpoint.labels, checkpoint.image_size
    architecture, head = recognise(checkpoint.state, len(labels), path)
    model = build_model(architecture, len(labels), head, side)
    model.load_state_dict(_with_names_of(model.state_dict(), checkpoint.state), strict=True)
    return Imported(
        model,
        architecture,
        head,
        labels,
        checkpoint.decisions,
        Preprocessing(side, 1.0, MEAN, STD, "stretch"),
        path,
        {"epoch": checkpoint.epoch, "shard_set": "unknown: imported from an earlier script"},
        (
            "if no genre reaches its threshold, the script named the most probable genre, but `posters predict` names "
            "none",
        ),
    )


def read_checkpoint(raw: dict[Any, Any], path: Path) -> Checkpoint:
    """Check the content of the earlier script's file. Raises UserError if a value is missing or invalid."""
    if not isinstance(raw.get("model_state_dict"), dict):
        raise UserError(
            "path-unreadable",
            f"{path} is not a {WHAT}: its model_state_dict has no tensors. To load weights, train with "
            f"--model.weights FILE",
        )
    config = raw.get("config") or {}
    if not isinstance(config, dict):
        raise UserError(
            "model-damaged", f"{path} is not a {WHAT}: its config is a {type(config).__name__} instead of a dict"
        )
    state, threshold_logits = _clean_names(raw["model_state_dict"], path)
    labels = _labels(raw.get("mlb"), path)
    stated = raw.get("num_classes")
    if stated is not None and (count := _number(stated, "num_classes", path)) != len(labels):
        raise UserError("labels-invalid", f"{path} has num_classes {count:g}, but its mlb has {len(labels)} genres")
    if raw.get("learn_thresholds") is False:
        threshold_logits = None  # the script writes this key even if it did not learn thresholds
    side = _image_size(config.get("image_size", 224), path)
    fixed = _number(config.get("fixed_threshold", 0.5), "fixed_threshold", path)
    epoch = _number(raw.get("epoch", 0), "epoch", path)
    if not 0 <= epoch <= 1e9:
        raise Unlike(path, f"its epoch is {epoch:g}, but must be 0 or more")
    decisions = _decisions(raw.get("learned_thresholds"), threshold_logits, fixed, len(labels), path)
    return Checkpoint(state, labels, side, decisions, int(epoch))


def recognise(state: State, num_genres: int, path: Path) -> tuple[str, HeadSpec]:
    """Return timm's architecture and the head for the tensors of a file. Raises UserError if no architecture fits."""
    body = {name: tensor.shape for name, tensor in _backbone(state).items()}
    for architecture in ARCHITECTURES:
        with torch.device("meta"):
            network: Any = timm.create_model(architecture, num_classes=0)
        if body == {name: tensor.shape for name, tensor in _backbone(network.state_dict()).items()}:
            return architecture, _head(state, network.num_features, num_genres, path)
    raise UserError(
        "model-unfit",
        f"{path} contains none of torchvision's {', '.join(ARCHITECTURES)}: its {len(body)} tensors before the "
        f"classifier have other names or shapes",
    )


def _backbone(state: State) -> State:
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("fc.") and not name.endswith("num_batches_tracked")
    }


def _head(state: State, width: int, num_genres: int, path: Path) -> HeadSpec:
    layers = _fc_layers(state)
    shapes = [tuple(state[f"{layer}.weight"].shape) for layer in layers if f"{layer}.weight" in state]
    wanted = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    found = {name for name in state if name.startswith("fc.")}
    flat = all(len(shape) == 2 and shape[0] <= MAX_WIDTH for shape in shapes)
    widths = [width, *(shape[0] for shape in shapes)] if flat else []
    chained = all(shape[1] == before for shape, before in zip(shapes, widths, strict=False))
    if not 0 < len(layers) <= MAX_HIDDEN + 1 or found != wanted or not flat or not chained:
        shown = ", ".join(name[:100] for name in sorted(found)[:9]) + (", ..." if len(found) > 9 else "")
        raise UserError(
            "model-unfit",
            f"{path}: its classifier ({shown or 'none'}) is neither one linear layer nor several with ReLU and dropout "
            f"between them",
        )
    if widths[-1] != num_genres:
        raise Unlike(
            path, f"its classifier has {widths[-1]} outputs, but its mlb has {num_genres} genres", "labels-invalid"
        )
    return HeadSpec("linear", (), 0.0) if len(layers) == 1 else HeadSpec("mlp", tuple(widths[1:-1]), 0.5)


def _fc_layers(state: State) -> list[str]:
    """Return the names of the classifier's layers in order: ``fc``, or for example ``fc.1`` and ``fc.4``."""
    layers = {name.rpartition(".")[0] for name in state if name.startswith("fc.")}
    return sorted(layers, key=lambda layer: [int(part) for part in layer.split(".") if part.isdigit()])


def _with_names_of(own: State, state: State) -> State:
    """Rename the layers of ``state`` to the names in the state dict ``own``, and add the batch counters of ``own``."""
    names = dict(zip(_fc_layers(state), _fc_layers(own), strict=True))
    renamed = {
        (f"{names[layer]}.{part}" if layer in names else name): tensor
        for name, tensor in state.items()
        for layer, _, part in [name.rpartition(".")]
    }
    return {**{n: t for n, t in own.items() if n.endswith("num_batches_tracked")}, **renamed}


def _decisions(learned: Any, logits: torch.Tensor | None, fixed: float, size: int, path: Path) -> Decisions:
    """Return the script's learned thresholds. If there are none, return the fixed threshold for all genres."""
    if learned is not None:
        thresholds, source = _vector(learned, "learned_thresholds", size, path), "learned by the earlier script"
    elif logits is not None:
        thresholds = sigmoid(_vector(logits, "threshold_logits", size, path))
        source = "learned by the earlier script, as logits"
    else:
        thresholds, source = np.full(size, fixed), "the earlier script's fixed threshold"
    if not ((thresholds >= 0) & (thresholds <= 1)).all():
        raise Unlike(path, f"its thresholds are not from 0 to 1 ({thresholds.min():g} to {thresholds.max():g})")
    return Decisions.plain(thresholds, source)


def _clean_names(raw: dict[Any, Any], path: Path) -> tuple[State, torch.Tensor | None]:
    """Remove the prefixes of names. Return the weights, and separately the parameter threshold_logits or None."""
    state: State = {}
    for name, tensor in raw.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise Unlike(path, f"its model_state_dict contains {_shown(name)}, which is not a tensor")
        plain = PREFIXES.sub("", name)
        if plain in state:
            raise Unlike(path, f"its model_state_dict has {_shown(plain)} twice, with different prefixes")
        state[plain] = tensor
    require_finite(state, path)
    return state, state.pop("threshold_logits", None)


def _labels(binarizer: Any, path: Path) -> LabelSet:
    if not isinstance(binarizer, PickledBinarizer) or not isinstance(binarizer.state, dict):
        raise UserError(
            "labels-invalid", f"{path} is not a {WHAT}: it has no MultiLabelBinarizer `mlb`, which contains the genres"
        )
    try:
        classes = [_as_number(item) for item in to_array(binarizer.state["classes_"]).tolist()]
    except KeyError:
        raise Unlike(path, "its mlb has no classes_, so it was not fitted", "labels-invalid") from None
    except NOT_NUMBERS as error:
        raise Unlike(path, f"the classes_ of its mlb cannot be read ({_shown(error)})", "labels-invalid") from None
    wrong = [item for item in classes if not isinstance(item, str) or not 0 < len(item) <= MAX_LETTERS]
    if wrong:
        raise Unlike(
            path, f"the classes_ of its mlb are not names of genres, e.g. {_shown(wrong[0])}", "labels-invalid"
        )
    if not classes or len(set(classes)) < len(classes):
        raise Unlike(path, "the classes_ of its mlb are empty or repeat a genre", "labels-invalid")
    return LabelSet(tuple(classes))


def _shown(value: Any) -> str:
    """Return a value as text for an error message. For a large or nested value, return the name of its type."""
    if isinstance(value, Exception):
        return one_line(value)[:200]
    plain = isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 1e18)
    return repr(value[:100] if isinstance(value, str) else value) if plain else type(value).__name__


def _as_number(item: Any) -> Any:
    try:
        return to_number(item)
    except ValueError:
        return item


def _image_size(value: Any, path: Path) -> int:
    sides = list(value) if isinstance(value, (tuple, list)) else [value]
    good = all(type(side) is int and 8 <= side <= MAX_SIDE for side in sides)
    if not good or not 1 <= len(sides) <= 2 or len(set(sides)) != 1:
        shown = "x".join(map(_shown, sides[:2]))
        raise Unlike(path, f"its image_size is {shown}, but must be one number from 8 to {MAX_SIDE}")
    return int(sides[0])


def _number(value: Any, what: str, path: Path) -> float:
    try:
        return float(to_number(value))
    except NOT_NUMBERS as error:
        raise Unlike(path, f"its {what} is not a number ({_shown(error)})") from None


def _vector(value: Any, what: str, size: int, path: Path) -> FloatArray:
    """Convert a value to (size,) finite float64 numbers. Raises UserError."""
    try:
        array = np.asarray(to_array(value), np.float64)
    except NOT_NUMBERS as error:
        raise Unlike(path, f"its {what} cannot be read ({_shown(error)})") from None
    if array.shape != (size,) or not np.isfinite(array).all():
        raise Unlike(path, f"its {what} are not {size} finite numbers, one for each genre")
    return array
