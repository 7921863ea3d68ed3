"""Options of ``posters compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

from shards.dataset.cache_options import SetOptions
from shards.errors import UserError
from shards.options import option
from toolkit.config.extensions import parse_modules, trust
from toolkit.config.model_files import model_folder_of
from toolkit.config.options import PassOptions

#: Smallest and largest number of models on a page.
FEWEST, MOST = 2, 12


def parse_models(texts: Sequence[str | Path]) -> tuple[Path, ...]:
    """Convert run folders and model folders to model folders. Raises UserError for a wrong number of them."""
    models = tuple(model_folder_of(text) for text in texts)
    if not FEWEST <= len(models) <= MOST:
        given = f"{len(models)} {'was' if len(models) == 1 else 'were'} given"
        raise UserError("option-value", f"`posters compare` takes {FEWEST} to {MOST} runs or models; {given}")
    whole = [model.resolve() for model in models]
    for at, model in enumerate(models):
        if whole[at] in whole[:at]:
            raise UserError("option-value", f"{model} was given twice; name each run or model once")
    return models


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SetOptions, PassOptions):
    """Options of ``posters compare``."""

    models: tuple[Path, ...] = option(MISSING, positional=True, metavar="RUN", several="words", parse=parse_models)
    """Run folders of trainings, or model folders (RUN/model). The first one is the reference of all differences."""
    split: str = "test"
    """Split on which the models are compared."""
    out: Path = option(Path("comparison"), "-o", metavar="DIR")
    """Folder for the page, DIR/index.html."""
    trust_code: tuple[str, ...] = option((), parse=parse_modules, metavar="MODULE[,MODULE]")
    """Python modules with the code that the models may use, such as a head of your own (default: none). The code runs
    with your rights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        trust(self.trust_code)
