"""Options that are shared by the commands that run a model."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from shards.options import option
from shards.values import Automatic, Checked

Tta = Literal["none", "flip"]


@dataclass(frozen=True, kw_only=True)
class ModelOption:
    """The option of a command that uses one model."""

    model: Path = option(MISSING, "-m")
    """Model folder (RUN/model)."""


@dataclass(frozen=True, kw_only=True)
class PassOptions(Checked):
    """Batch size, threads and precision of the forward pass."""

    batch_size: Automatic = 0
    """Images per forward pass (default: 32 on a CPU, 128 on a GPU)."""
    threads: Automatic = option(0, old=("--workers",))
    """Decoding threads per process (0: automatic)."""
    precision: Literal["no", "fp16", "bf16"] | None = None
    """Mixed precision."""


@dataclass(frozen=True)
class ForwardOptions:
    """Options of the forward pass of a prediction."""

    channels_last: bool = True
    """Use the channels_last memory layout, in which convolutions are fastest."""
    compile: bool = False
    """Use torch.compile: compilation takes about a minute, so it helps only with many images."""
    tta: Tta = "none"
    """flip: average each image and its mirror image, which doubles the time."""
    embeddings: bool = False
    """Also save the input features of the classifier, for search and de-duplication (only if OUT is a folder)."""

    def forward_facts(self) -> dict[str, Any]:
        """Return the options that change the results beyond rounding, as prediction files record them."""
        return {"tta": self.tta, "embeddings": self.embeddings}
