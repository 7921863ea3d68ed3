"""Options of ``posters demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoOptions:
    """Options of ``posters demo``."""

    out: Path = Path("demo")
    """Folder for all results."""
    posters: int = 600
    """Number of posters to draw."""
    seed: int = 0
    """Seed of the posters and of the training."""
