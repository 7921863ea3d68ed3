"""Options of ``posters app``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.options import option
from shards.text.inpaint import FILLS
from toolkit.config.options import ModelOption


@dataclass(frozen=True, kw_only=True)
class AppOptions(ModelOption):
    """What ``posters app`` is asked for."""

    host: str = "127.0.0.1"
    """Address to listen on (default 127.0.0.1: this machine alone; the page has no password)."""
    port: int = 7860
    """Port to listen on."""
    root_path: str = option("", metavar="ADDRESS")
    """What a proxy in front serves the page under, such as https://example.org/posters."""
    fill: str = option("surround", choices=FILLS)
    """How text is painted over."""
    fill_model: Path | None = None
    """ONNX in-painting network instead: image and mask in, image out."""
    text: bool = True
    """Look for text, and answer once more without it."""
