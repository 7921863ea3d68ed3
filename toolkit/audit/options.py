"""Options of ``posters audit``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.errors import UserError
from shards.options import option
from shards.tables.metadata import GenreOptions
from shards.values import Count
from toolkit.config.options import ModelOption, PassOptions


@dataclass(frozen=True, kw_only=True)
class AuditOptions(ModelOption, GenreOptions, PassOptions):
    """Options of ``posters audit``."""

    images: Path
    """Folder of the posters before cleaning."""
    cleaned: Path
    """Output folder of `posters clean` for these posters."""
    metadata: Path | None = None
    """Table with the genres of posters, to compute metrics. Only the posters of this file are audited."""
    limit: Count | None = None
    """Audit only this number of posters, chosen at random with --seed."""
    controls: Count = 4
    """Number of controls per poster. In a control, areas shaped like the text are painted over at random places."""
    seed: int = 0
    """Seed of the random places, the random sample and the bootstrap."""
    fill_model: Path | None = None
    """ONNX network that `posters clean` used. The network also paints the controls."""
    batch_size: Count = 64
    """Number of images per forward pass."""
    out: Path = option(Path("audit"), "-o")
    """Folder for the report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images.is_dir():
            raise UserError(
                "path-missing", f"image folder not found: {self.images}; name the uncleaned posters with --images"
            )
        if not self.cleaned.is_dir():
            raise UserError("path-missing", f"cleaned folder not found: {self.cleaned}; create it with `posters clean`")
