"""The options and the function of ``posters train``. All fields of Config are options."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from docstring_parser import parse_from_object

from shards.dataset.cache_options import SetOptions
from shards.errors import UserError, printable_line
from shards.options import option
from shards.storage.kinds import MODEL, RUN, kind_of
from shards.storage.paths import StoragePath, is_remote
from toolkit.config.extensions import parse_modules, trust
from toolkit.config.files import CONSTANTS, FLAT_LOSS_OPTIONS, RENAMED, as_today, check_file, check_text
from toolkit.config.loss_registry import LOSSES
from toolkit.config.model_files import model_folder_of, read_config
from toolkit.config.recipes import config_path
from toolkit.config.schema import Config
from toolkit.config.synonyms import MAIN_KEYS, meant
from toolkit.config.tracker_registry import TRACKERS
from toolkit.config.validation import check_config

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(SetOptions):
    """Options of ``posters train``."""

    config: Config = option(factory=Config, sections=True)
    """YAML file with any of the keys below, or the name of a recipe such as best (`posters configs` lists them). A file
    with this name is used first. Options after --config replace values of the file."""
    out: Path = option(MISSING, parse=Path)
    """Run folder to write."""
    resume: bool = False
    """Continue the run in --out from its newest valid checkpoint."""
    trust_code: tuple[str, ...] = option((), parse=parse_modules, metavar="MODULE[,MODULE]")
    """Python modules with the code that the model of --model.weights may use (default: none). The code runs with your
    rights."""
    find_lr: bool = False
    """Test increasing learning rates instead of training. Write the loss curve and a suggested rate to --out."""

    def __post_init__(self) -> None:
        trust(self.trust_code)
        check_config(self.config)
        if self.resume and self.find_lr:
            raise UserError("option-conflict", "--find-lr always starts from the initial weights; remove --resume")

    #: Keys of earlier versions → their types. The keys are accepted, but not listed by --help.
    old_keys: ClassVar[dict[str, Any]] = {
        **dict.fromkeys((f"loss.{name}" for name in FLAT_LOSS_OPTIONS), float),
        "train.tensorboard": bool,
        **dict.fromkeys(RENAMED, float),
        **{key: list[float] if isinstance(value, list) else type(value) for key, value in CONSTANTS.items()},
    }

    renamed: ClassVar[dict[str, str]] = RENAMED

    @staticmethod
    def as_today(parsed: Any, words: Sequence[str]) -> None:
        """Convert keys of earlier versions to current keys. Raises UserError if a value is no longer supported."""
        for old, new in RENAMED.items():
            if old in parsed:
                log.info("%s is called %s in this version", old, new)
        for key, value in as_today(parsed, {word.removeprefix("--").partition("=")[0] for word in words}).items():
            if key == "train.channels_last":
                log.info("train.channels_last %s has no effect: it is always true in this version", value)
            elif key == "augment.mix_prob" and value == 0:
                log.info("augment.mix_prob 0 is read as augment.mixup 0 and augment.cutmix 0")
            else:
                raise UserError(
                    "option-value", f"{key} is always {CONSTANTS[key]} in this version, not {value}; remove the key"
                )

    @staticmethod
    def registered() -> dict[str, dict[str, str]]:
        """Return the options of all losses and trackers for --help: title of a loss or tracker → {key: help text}."""
        entries = {**{f"With --loss.name {name}": ("loss.options", loss.options) for name, loss in LOSSES.items()}}
        for name, entry in TRACKERS.items():
            if entry.options is not None:
                entries[f"Tracker {name}"] = f"train.trackers.{name}", entry.options
        return {
            title: {
                f"{key}.{option.arg_name}": f"{(option.description or '').rstrip('.')} (default {option.default})."
                for option in parse_from_object(options).params
            }
            for title, (key, options) in entries.items()
            if dataclasses.fields(options)
        }

    #: Function that returns a hint for an unknown key.
    meant = staticmethod(meant)

    @staticmethod
    def checked_words(words: Sequence[str]) -> list[str]:
        """Return the words of the command line, in which paths replace the names of recipes after --config.

        Raises UserError for an invalid file or text after --config or after a section, such as --optim.
        """
        sections = {section.name for section in dataclasses.fields(Config)}
        found = list(words)
        for at, word in enumerate(words):
            name, given, value = word.partition("=")
            value = value if given else " ".join(words[at + 1 : at + 2])
            if name == "--config" and (given or at + 1 < len(words)):  # argparse reports a missing value
                path = config_path(value)
                check_file(path, sections)
                found[at if given else at + 1] = f"{name}={path}" if given else str(path)
            elif name == "--train.trackers" and any(other.startswith(f"{name}.") for other in words[at:]):
                found[at if given else at + 1] = f"{name}=" * bool(given) + _as_mapping(value)
            elif name.startswith("--") and (section := name.removeprefix("--")) in sections:
                _check_section(section, value)
        return found


def _as_mapping(trackers: str) -> str:
    """Return a text such as "wandb,mlflow" or "[wandb, mlflow]" as a mapping, to which options can be added."""
    if trackers.lstrip().startswith("{"):
        return trackers
    return json.dumps({name: {} for name in re.split(r"[\s,]+", trackers.strip(" []")) if name})


def _check_section(section: str, value: str) -> None:
    """Raise UserError for an invalid file or text after a section, such as ``--model resnet18``."""
    path = Path(value)
    if value.lstrip().startswith("{"):
        check_text(value, f"--{section}")
    elif path.is_file():
        check_file(path, set())
    elif not value.startswith("-") and section in MAIN_KEYS:
        what = f"--{section} takes a YAML file with keys of the section {section}, not {printable_line(value)!r}"
        raise UserError("option-value", f"{what}; did you mean --{MAIN_KEYS[section]} {printable_line(value)}?")


def _refuse_run(shards: StoragePath) -> None:
    """Raise UserError if ``shards`` is a run folder or model folder. The message names the set of its training."""
    kind = None if is_remote(shards) else kind_of(shards)
    if kind not in (MODEL, RUN):
        return
    model, which = model_folder_of(shards), ""
    if kind_of(model) == MODEL:
        number = read_config(model)[0].poster_toolkit.shard_set
        which = f", such as the set {number} of this training (`posters shards info SHARDS` prints the number)"
    raise UserError("set-missing", f"{shards} is {kind}, not a shard set; name a shard set with --shards{which}")


def run_train(options: TrainOptions) -> int:
    """Train and return the exit status."""
    from shards.dataset.store import open_store
    from toolkit.training.run import train

    _refuse_run(options.shards)
    store = open_store(options.shards, options.cache)
    return train(options.config, store, options.out, resume=options.resume, search_lr=options.find_lr)
