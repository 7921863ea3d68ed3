"""Options of ``posters app``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shards.dataset.cache_options import CacheOptions
from shards.errors import UserError
from shards.options import option
from shards.storage.paths import StoragePath, storage_path
from shards.text.inpaint import FILLS
from toolkit.config.options import ModelOption


@dataclass(frozen=True, kw_only=True)
class AppOptions(ModelOption):
    """Options of ``posters app``."""

    shards: StoragePath | None = option(None, parse=storage_path)
    """Shard set whose posters the page shows as a gallery: a folder or URL (s3://, gs://, hf://, http://)."""
    split: str | None = None
    """Split of the gallery (default: test). It needs --shards."""
    cache: CacheOptions = field(default_factory=CacheOptions)
    host: str = "127.0.0.1"
    """Address to listen on. With 127.0.0.1, only this machine can open the page. The page has no password."""
    port: int = 7860
    """Port to listen on."""
    root_path: str = option("", metavar="ADDRESS")
    """Address or path under which a proxy serves the page, such as https://example.org/posters."""
    fill: str = option("surround", choices=FILLS)
    """Method that paints over text."""
    fill_model: Path | None = None
    """ONNX in-painting network to use instead of --fill. Its inputs are image and mask, and its output is an image."""
    text: bool = True
    """Detect text, and show the prediction without the text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split is not None and self.shards is None:
            raise UserError("option-missing", "--split needs --shards, the shard set of the gallery")
