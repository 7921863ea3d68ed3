"""Options that several commands of models have."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from shards.options import option
from shards.values import Automatic, Checked

Tta = Literal["none", "flip"]


@dataclass(frozen=True, kw_only=True)
class ModelOption:
    """A command about one model."""

    model: Path = option(MISSING, "-m")
    """Model folder (RUN/model)."""


@dataclass(frozen=True, kw_only=True)
class PassOptions(Checked):
    """How many images go through a model at a time, and in which numbers."""

    batch_size: Automatic = 0
    """Images per forward pass (default: 32 on a CPU, 128 on a GPU)."""
    threads: Automatic = option(0, old=("--workers",))
    """Decoding threads per process (0: automatic)."""
    precision: Literal["no", "fp16", "bf16"] | None = None
    """Mixed precision."""


@dataclass(frozen=True)
class ForwardOptions:
    """How a forward pass of a prediction is run."""

    channels_last: bool = True
    """Memory layout that convolutions like best."""
    compile: bool = False
    """torch.compile: faster after a first minute, for many images."""
    tta: Tta = "none"
    """flip: the mean over each image and its mirror image, for twice the time."""
    embeddings: bool = False
    """Also the pooled features that the classifier is given, for search and de-duplication (folders)."""

    def forward_facts(self) -> dict[str, Any]:
        """Those that change what comes out, but for rounding; files of predictions hold them."""
        return {"tta": self.tta, "embeddings": self.embeddings}
