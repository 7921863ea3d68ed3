"""Schemas of config.json, labels.json and metrics-SPLIT.json of a model folder.

A folder may come from an untrusted source. Types and bounds are therefore checked before the weights are read, and
config.json and labels.json are compared. A key has a default if folders of earlier versions do not contain it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from shards.dataset.labels import MAX_GENRES, LabelSet
from shards.errors import UserError, one_line
from shards.schema import Count, Sha256, check_as, parse_as
from toolkit.config.extensions import is_place
from toolkit.config.values import LEAST_CROP_PCT, MAX_HIDDEN, MAX_MEMBERS, MAX_RESIZED, MAX_SIDE, MAX_WIDTH, HeadKind

T = TypeVar("T")

CONFIG, LABELS = "config.json", "labels.json"
AGAIN = "copy the whole folder again, or train again"
DECIDE_AGAIN = "choose the values again with `posters tune`, or copy the whole folder again"
#: Largest size of a JSON file in bytes. With the largest number of genres, 32,767, a run writes about 10 MB.
MAX_JSON = 64 * 2**20

Genre = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Text = Annotated[str, msgspec.Meta(max_length=10_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
#: A finite number. The two bounds also refuse NaN, because all comparisons with NaN are false.
Number = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Side = Annotated[int, msgspec.Meta(ge=8, le=MAX_SIDE)]
#: Mean and standard deviation of RGB values between 0 and 1. For ImageNet they are about 0.45 and 0.225.
Mean = Annotated[float, msgspec.Meta(ge=-1e3, le=1e3)]
Std = Annotated[float, msgspec.Meta(ge=1e-4, le=1e3)]
#: Bias and scale of a calibration, in the range of float32.
Bias = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
Scale = Annotated[float, msgspec.Meta(gt=0, le=1e30)]
Width = Annotated[int, msgspec.Meta(ge=1, le=MAX_WIDTH)]
#: Name of a metric, such as ``micro_f1`` → its value.
Figures = dict[str, Number | list[Number | None] | None]
field = msgspec.field


def model_folder_of(path: str | Path) -> Path:
    """Return RUN/model for the run folder RUN of a training with a model. Return any other path unchanged."""
    folder = Path(path)
    return folder / "model" if (folder / "model" / LABELS).is_file() else folder


class HeldOut(msgspec.Struct):
    """Loss and calibration error of one calibration method on held-out validation samples."""

    loss: Number
    ece: Number


class HeldOutF(msgspec.Struct):
    """F-measures on held-out validation samples, for one common threshold or for one threshold per genre."""

    micro_f: Number
    macro_f: Number


class ChosenOn(msgspec.Struct):
    """How calibration and thresholds were chosen."""

    split: Text = "val"
    samples: Count = 0
    held_out: dict[Method, HeldOut] = field(default_factory=dict)
    cross_fit: dict[Text, HeldOutF] = field(default_factory=dict)
    macro_weight: Number | None = None
    slack: Number | None = None
    by_hand: dict[Genre, Share] = field(default_factory=dict)
    """Genre whose threshold was set by hand → the threshold that was chosen for it."""


class CalibrationFile(msgspec.Struct):
    """Calibrated logit = scale * logit + bias. Scales and biases are (G,), or empty for method "none"."""

    method: Method = "none"
    scale: list[Scale] = field(default_factory=list)
    bias: list[Bias] = field(default_factory=list)


class DecisionsFile(msgspec.Struct):
    """The part of labels.json with thresholds and calibration."""

    thresholds: list[Share]
    threshold_source: Text = "unknown"
    global_threshold: Share | None = None
    aim: Text = "none"
    calibration: CalibrationFile = field(default_factory=CalibrationFile)
    chosen_on: ChosenOn = field(default_factory=ChosenOn)
    decisions: Text | None = None


class LabelsFile(DecisionsFile, kw_only=True):
    """The content of labels.json."""

    genres: Annotated[list[Genre], msgspec.Meta(min_length=1, max_length=MAX_GENRES)]
    fingerprint: Text
    title: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    """Heading of the page of the app. The user writes it by hand."""
    noun: Annotated[str, msgspec.Meta(min_length=1, max_length=40)] | None = None
    """What one label is, such as ``mood``. The user writes it by hand."""


class HeadFile(msgspec.Struct):
    """Options of the head (the new classifier of the model), with the same names as in models.heads.HeadSpec."""

    kind: Annotated[str, msgspec.Meta(max_length=200)]
    """A name of HeadKind, or MODULE:CLASS."""
    hidden: Annotated[list[Width], msgspec.Meta(max_length=MAX_HIDDEN)]
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    members: Annotated[int, msgspec.Meta(ge=1, le=MAX_MEMBERS)] = 1
    options: dict[Text, Any] = field(default_factory=dict)
    """Options of a class of the user."""


class ToolkitFile(msgspec.Struct):
    """The value of the key ``poster_toolkit`` of config.json."""

    head: HeadFile
    weights_sha256: Sha256
    epoch: Count = 0
    weights: Text = "raw"
    shard_set: Text = "unknown"
    monitor: Text | None = None
    score: Number | None = None
    imported_sha256: Sha256 | None = None


class PretrainedFile(msgspec.Struct):
    """The keys of timm's ``pretrained_cfg`` that are read. Its URLs are ignored, so nothing is downloaded."""

    input_size: tuple[Literal[3], Side, Side]
    crop_pct: Annotated[float, msgspec.Meta(ge=LEAST_CROP_PCT, le=1)]
    crop_mode: Literal["center", "squash"]
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Std, Std, Std]


class ConfigFile(msgspec.Struct):
    """The content of config.json."""

    architecture: Annotated[str, msgspec.Meta(pattern=r"\A\w+(\.\w+)?\Z", max_length=200)]
    pretrained_cfg: PretrainedFile
    poster_toolkit: ToolkitFile
    num_classes: Count | None = None
    num_features: Count = 0
    label_names: list[Genre] | None = None


class Metrics(msgspec.Struct):
    """Metrics of a model with one choice of thresholds."""

    label: Text
    metrics: Figures


class Baseline(Metrics):
    """Metrics of a baseline without a model."""

    ranking: Figures | None = None


class Errors(msgspec.Struct):
    """Expected calibration errors."""

    ece: Number
    ece_macro: Number


class BeforeAfter(msgspec.Struct):
    """Calibration errors before and after the calibration."""

    before: Errors
    after: Errors


class MetricsFile(msgspec.Struct):
    """The keys of metrics-SPLIT.json that the model card shows."""

    num_samples: Count
    thresholds: list[Metrics]
    baselines: list[Baseline]
    ranking: Figures
    loss: Number | None
    calibration: BeforeAfter | None = None
    shard_set: Text | None = None
    decisions: Text | None = None


def read_as(path: Path, schema: type[T], what: str, remedy: str) -> tuple[T, dict[str, Any]]:
    """Return the checked values and the complete content of a JSON file. Raises UserError."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise UserError(
                "model-damaged",
                f"{path} is not a valid {what}: it has {size / 2**20:.0f} MB, over the limit of 64 MB; {remedy}",
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("model-missing", f"{what} not found: {path}") from None
    except OSError as error:
        raise UserError("path-unreadable", f"{what} {path} cannot be read: {one_line(error)}") from None
    raw: dict[str, Any] = parse_as(data, dict[str, Any], path, what, remedy)
    return check_as(raw, schema, path, what, remedy), raw


def read_labels(folder: Path) -> tuple[LabelsFile, dict[str, Any]]:
    """Return the checked values and the complete content of a model folder's labels.json. Raises UserError."""
    path = folder / LABELS
    found, raw = read_as(path, LabelsFile, "labels file", AGAIN)
    if len(set(found.genres)) < len(found.genres):
        twice = Counter(found.genres).most_common(1)[0][0]
        raise UserError("labels-invalid", f"{path} is not a valid labels file: its genres repeat {twice!r}; {AGAIN}")
    labels = LabelSet(tuple(found.genres))
    if found.fingerprint != labels.fingerprint:
        raise UserError(
            "labels-invalid",
            f"{path} was edited: its genres do not match its fingerprint {found.fingerprint[:64]!r}; {AGAIN}",
        )
    check_decisions(found, len(labels), path)
    return found, raw


def check_decisions(found: DecisionsFile, num_genres: int, where: object) -> None:
    """Raise UserError if the number of thresholds, scales or biases differs from the number of genres."""
    calibration = found.calibration
    each = {"thresholds": found.thresholds}
    if calibration.method != "none":
        each |= {"scales": calibration.scale, "biases": calibration.bias}
    for what, values in each.items():
        if len(values) != num_genres:
            raise UserError(
                "labels-invalid",
                f"{where} is not a valid labels file: it has {len(values)} {what} for {num_genres} genres; "
                f"{DECIDE_AGAIN}",
            )


def read_config(folder: Path) -> tuple[ConfigFile, dict[str, Any]]:
    """Return the checked values and the complete content of a model folder's config.json. Raises UserError."""
    path = folder / CONFIG
    found, raw = read_as(path, ConfigFile, "model config", AGAIN)
    cfg = found.pretrained_cfg
    _, height, width = cfg.input_size
    problem, kind = None, found.poster_toolkit.head.kind
    if kind not in get_args(HeadKind) and not is_place(kind):
        problem = f"poster_toolkit.head.kind: this version has no head {kind!r}"
    elif height != width:
        problem = f"pretrained_cfg.input_size: {height} x {width} is not a square"
    elif cfg.crop_mode == "center" and width / cfg.crop_pct > MAX_RESIZED:
        problem = f"pretrained_cfg.crop_pct: {cfg.crop_pct:g} makes resized images larger than {MAX_RESIZED} pixels"
    if problem:
        raise UserError("model-damaged", f"{path} is not a valid model config: {problem}; {AGAIN}")
    return found, raw


def check_agreement(config: ConfigFile, genres: tuple[str, ...], folder: Path) -> None:
    """Raise UserError if config.json does not belong to the model whose ``genres`` are in labels.json."""
    if config.num_classes not in (None, len(genres)):
        what = f"{CONFIG} has num_classes {config.num_classes}, but {LABELS} has {len(genres)} genres"
    elif config.label_names not in (None, list(genres)):
        what = f"the label_names of {CONFIG} are not the genres of {LABELS}"
    else:
        return
    raise UserError("model-damaged", f"{folder / CONFIG} and {LABELS} are of different models: {what}; {AGAIN}")


Method = Literal["none", "temperature", "platt"]
