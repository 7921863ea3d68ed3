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
    """Options of ``posters export``."""

    format: FormatName = option("onnx", "-f")
    """Format of the file."""
    out: Path | None = option(None, "-o")
    """Output file (default: MODEL/model.onnx or MODEL/model.pt2; with --preprocess: MODEL/model-preprocess.onnx)."""
    preprocess: bool = False
    """onnx only: include resizing, cropping and normalising. The file then takes decoded RGB images of any size."""
    opset: int | None = None
    """onnx only: version of the ONNX operators (default 18)."""
    check: list[Path] | None = option(None, metavar="DIR_or_FILE")
    """Images for the comparison of the file with PyTorch. At most 64 images are used (default: drawn posters)."""
    tolerance: Positive | None = None
    """Largest allowed difference of logits, probabilities and embedding (default 0.001). With --preprocess, the limit
    applies to probabilities only (default 0.05)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format != "onnx" and (self.preprocess or self.opset is not None):
            raise UserError("option-conflict", "--preprocess and --opset need --format onnx")


@dataclass(frozen=True, kw_only=True)
class PushOptions(ModelOption):
    """Options of ``posters push``."""

    repo: str = option(MISSING, metavar="USER/NAME")
    """Repository on the hub."""
    private: bool = False
    """Make a new repository private."""
    revision: str | None = option(None, metavar="R")
    """Branch of the repository (default: main)."""
    message: str | None = option(None, metavar="M")
    """Commit message (default: the architecture and the number of genres)."""
    with_predictions: bool = False
    """Upload predictions-*.npz, too. These files contain the logits and labels of the evaluated samples."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of ``posters import``."""

    checkpoint: Path = option(MISSING, metavar="FILE.pth")
    """Checkpoint of the earlier training script."""
    out: Path = option(MISSING, "-o")
    """Model folder to create. The folder must not exist, or must be empty."""
