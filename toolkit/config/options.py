"""Options that several commands of models have."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Literal

from shards.errors import UserError
from shards.options import option


@dataclass(frozen=True, kw_only=True)
class ModelOption:
    """A command about one model."""

    model: Path = option(MISSING, "-m")
    """Model folder (RUN/model)."""


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """How many images go through a model at a time, and in which numbers."""

    batch_size: int = 0
    """Images per forward pass (default: 32 on a CPU, 128 on a GPU)."""
    threads: int = option(0, old=("--workers",))
    """Decoding threads per process (0: automatic)."""
    precision: Literal["no", "fp16", "bf16"] | None = None
    """Mixed precision."""

    def __post_init__(self) -> None:
        if self.batch_size < 0 or self.threads < 0:
            raise UserError("option-value", "--batch-size and --threads must be 0 (automatic) or more")
