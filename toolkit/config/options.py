"""Options that are common to the commands that use a model, and options of a class of the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from shards.errors import UserError, one_line
from shards.options import option
from shards.values import Automatic, Checked
from toolkit.config.extensions import parse_modules, trust
from toolkit.config.model_files import model_folder_of

Tta = Literal["none", "flip"]


@dataclass(frozen=True, kw_only=True)
class ModelOption(Checked):
    """The options that name the model, and the code that it may use."""

    model: Path = option(MISSING, "-m", metavar="RUN", parse=model_folder_of)
    """Run folder of a training, or model folder (RUN/model)."""
    trust_code: tuple[str, ...] = option((), parse=parse_modules, metavar="MODULE[,MODULE]")
    """Python modules with the code that the model may use, such as a head of your own (default: none). The code runs
    with your rights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        trust(self.trust_code)


@dataclass(frozen=True, kw_only=True)
class PassOptions(Checked):
    """Batch size, threads and precision of the forward pass."""

    batch_size: Automatic = 0
    """Images per forward pass (default: 32 on a CPU, 128 on a GPU)."""
    threads: Automatic = option(0, old=("--workers",))
    """Number of decoding threads per process. 0 selects the number automatically."""
    precision: Literal["no", "fp16", "bf16"] | None = None
    """Mixed precision of the forward pass."""


@dataclass(frozen=True)
class ForwardOptions:
    """Options of the forward pass of a prediction."""

    channels_last: bool = True
    """Use the channels_last memory layout, in which convolutions are fastest."""
    compile: bool | None = None
    """Use torch.compile, which takes about a minute to compile. Without this option, a prediction whose forward passes
    would take over a quarter of an hour tries it, and uses it if it is faster and gives the same results except for
    rounding errors."""
    tta: Tta = "none"
    """With flip, average the outputs for each image and its mirror image. This doubles the time."""
    embeddings: bool = False
    """Also save the input features of the classifier, for search and de-duplication. --out must then be a folder."""

    def forward_facts(self) -> dict[str, Any]:
        """Return the options that change results by more than rounding errors. They are saved in prediction files."""
        return {"tta": self.tta, "embeddings": self.embeddings}


def parse_options(words: Sequence[str], flag: str) -> dict[str, Any]:
    """Convert ["beta=2", "name=x"] to a dict. Values are YAML. Raises UserError for other texts."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name.isidentifier() and equals):
            raise UserError("option-value", f"{flag} takes NAME=VALUE such as beta=2, not {word!r}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError("option-value", f"{flag} {name}: {one_line(error)[:200]}") from None
    return found
