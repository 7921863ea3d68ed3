"""Options of ``posters export``, ``push`` and ``import``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Literal

from shards.errors import UserError
from shards.options import option
from shards.values import Checked, Positive, between
from toolkit.config.options import ModelOption
from toolkit.config.values import LEAST_CROP_PCT, MAX_SIDE
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


def parse_three(text: str) -> tuple[float, ...]:
    """Convert ``0.485,0.456,0.406`` to three numbers. Raises UserError."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise UserError("option-value", f"--mean and --std take three numbers such as 0.485,0.456,0.406, not {text!r}")
    return values


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Checked):
    """Options of ``posters import``."""

    checkpoint: str = option(MISSING, metavar="FILE_or_DIR")
    """Checkpoint of timm (.safetensors, .pth, .pth.tar), folder in timm's hub format (also local-dir:DIR), model on the
    Hugging Face Hub (hf://USER/NAME or hf://USER/NAME@REVISION), or .pth file of the earlier training script."""
    out: Path = option(MISSING, "-o")
    """Model folder to create. The folder must not exist, or must be empty."""
    classes: Path | None = None
    """Names of the classes in the order of the model's outputs: a text file with one name per line, or a .json file (a
    list, an object with the number of each name, a labels.json, or the manifest.json of a shard set). Default: the
    names in the folder's config.json."""
    model_name: str | None = None
    """timm's name of the architecture, such as resnet50. Default: the name in the checkpoint or config.json."""
    image_size: Annotated[int, between(8, MAX_SIDE)] | None = None
    """Side of the input in pixels. The defaults of this option and of the next four options are the values in the
    checkpoint or config.json, or else timm's values for the architecture."""
    mean: tuple[float, ...] | None = option(None, parse=parse_three, metavar="R,G,B")
    """Mean of the RGB values from 0 to 1, for the normalisation."""
    std: tuple[float, ...] | None = option(None, parse=parse_three, metavar="R,G,B")
    """Standard deviation of the RGB values."""
    crop_pct: Annotated[float, between(LEAST_CROP_PCT, 1)] | None = None
    """Share of the short side that the central crop has."""
    fit: Literal["crop", "stretch"] | None = None
    """crop: use the central square of an image. stretch: resize the whole image to a square."""
    ema: bool = True
    """Use the averaged weights (EMA) of a checkpoint that has them, as timm does."""
