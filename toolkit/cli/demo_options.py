"""Options of ``posters demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoOptions:
    """What ``posters demo`` is asked for."""

    out: Path = Path("demo")
    """Folder for all it makes."""
    posters: int = 600
    """Posters to draw."""
    seed: int = 0
    """Seed of drawing and training."""
