"""Options of ``posters export``, ``push`` and ``import``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from shards.errors import UserError
from shards.options import option
from shards.values import Checked, Positive
from toolkit.config.options import ModelOption
from toolkit.export.formats import FormatName


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOption, Checked):
    """What ``posters export`` is asked for."""

    format: FormatName = option("onnx", "-f")
    """Of the file."""
    out: Path | None = option(None, "-o")
    """File (default MODEL/model.onnx, MODEL/model-preprocess.onnx or MODEL/model.pt2)."""
    preprocess: bool = False
    """onnx: resize, crop and normalise within the file, which then takes decoded RGB images of any size."""
    opset: int | None = None
    """onnx: version of the operators (default 18)."""
    check: list[Path] | None = option(None, metavar="DIR_or_FILE")
    """Images to compare the file with PyTorch on, at most 64 of them (default: drawn posters)."""
    tolerance: Positive | None = None
    """Largest difference: of logits, probabilities and embedding (default 0.001), or with --preprocess of probabilities
    (default 0.05)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != "onnx" and (self.preprocess or self.opset is not None):
            raise UserError("option-conflict", "--preprocess and --opset go with --format onnx")


@dataclass(frozen=True, kw_only=True)
class PushOptions(ModelOption):
    """What ``posters push`` is asked for."""

    repo: str = option(MISSING, metavar="USER/NAME")
    """Repository on the hub."""
    private: bool = False
    """Make it private if it is new."""
    revision: str | None = option(None, metavar="R")
    """Branch (default: the main one)."""
    message: str | None = option(None, metavar="M")
    """Of the commit."""
    with_predictions: bool = False
    """Also predictions-*.npz: logits and labels of the samples that were evaluated."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What ``posters import`` is asked for."""

    checkpoint: Path = option(MISSING, metavar="FILE.pth")
    """Of the earlier training script."""
    out: Path = option(MISSING, "-o")
    """Model folder to make; absent or empty."""
