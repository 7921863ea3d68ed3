"""Options of ``posters audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError
from shards.inputs.metadata import GenreOptions
from shards.options import option
from shards.values import Count
from toolkit.config.options import ModelOption, PassOptions


@dataclass(frozen=True, kw_only=True)
class AuditOptions(ModelOption, GenreOptions, PassOptions):
    """What ``posters audit`` is asked for."""

    images: Path
    """Folder of the posters before cleaning."""
    cleaned: Path
    """Folder made of them by `posters clean` (with its report)."""
    metadata: Path | None = None
    """CSV with the genres: audit only its posters, with metrics."""
    limit: Count | None = None
    """Audit a sample of this many posters, drawn by the seed."""
    controls: Count = 4
    """Random places per poster to compare with."""
    seed: int = 0
    """Seed of places, sample and interval."""
    fill_model: Path | None = None
    """The ONNX network that cleaned the posters, to paint the controls with."""
    batch_size: Count = 64
    """Images per forward pass."""
    out: Path = option(Path("audit"), "-o")
    """Folder for the report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images.is_dir():
            raise UserError(
                "path-missing", f"image folder not found: {self.images}; name the uncleaned posters with --images"
            )
        if not self.cleaned.is_dir():
            raise UserError("path-missing", f"cleaned folder not found: {self.cleaned}; `posters clean` makes one")
