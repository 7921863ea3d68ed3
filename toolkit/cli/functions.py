"""The commands as Python functions, which toolkit/__init__.py exports. Keywords are the options of the commands.

The functions print nothing but progress bars. They never end the process: bad input raises UserError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shards.cli.keywords import in_python, keywords_of, options_of
from shards.cli.options import Parser
from shards.errors import UserError, did_you_mean
from shards.storage.paths import StoragePath
from toolkit.cli.commands import COMMANDS
from toolkit.cli.main import memory_line
from toolkit.cli.train import TrainOptions, run_train
from toolkit.config.schema import Config
from toolkit.config.synonyms import MAIN_KEYS, meant
from toolkit.data.sources.shard_set import ShardSet
from toolkit.device.out_of_memory import explain_out_of_memory

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.cli.run_folder import Run
    from toolkit.evaluation.results import Evaluation
    from toolkit.prediction.api import ImageLike, Predictor

#: A shard set: its folder, its URL, or the result of `open_shards`.
ShardsLike = str | StoragePath | ShardSet
#: Keys of a configuration, nested or with dots: ``{"optim": {"lr": 0.001}}`` or ``{"optim.lr": 0.001}``.
Keys = Mapping[str, Any]
#: A key of a configuration at the end of a suggestion, as in ``did you mean 'optim.lr'?``.
_KEY = re.compile(r"'(\w+)\.(\w+)'\?$")


def build_shards(**options: Any) -> ShardSet:
    """Pack posters and a CSV into a shard set, as `posters shards build` does, and open it.

    ``build_shards(images="posters", metadata="posters.csv", out="SHARDS")``. The keywords are the options of the
    command. The command also writes rejected.csv, the list of unusable posters. Raises UserError for bad input.
    """
    from shards.build.run import BuildOptions
    from shards.build.run import build_shards as build

    chosen = options_of(BuildOptions, options)
    with in_python(BuildOptions):
        chosen.check_executor()
        build(chosen)
    return ShardSet(chosen.out)


def open_shards(shards: str | StoragePath, split: str | None = None) -> ShardSet:
    """Open a shard set or one of its splits. The result has a length, pictures with genres, and a table of samples.

    ``shards`` is a folder or a URL. Raises UserError if the set or the split is missing, or if a file is damaged.
    """
    return ShardSet(shards, split)


def train(
    shards: ShardsLike,
    out: str | os.PathLike[str],
    config: str | os.PathLike[str] | Keys | Config | None = None,
    **options: Any,
) -> Run:
    """Train a model, as `posters train` does, and return the run.

    ``config`` is a YAML file, keys as a dict, or None for the reference recipe. Sections of the configuration and
    options of the command are keywords: ``train("SHARDS", "RUN", "recipe.yaml", optim={"lr": 0.001}, resume=True)``.
    Dotted keys also work: ``**{"optim.lr": 0.001}``. They replace values of ``config``.

    Raises UserError for bad input. Ctrl-C saves a checkpoint and raises KeyboardInterrupt. With ``resume=True``, the
    same call continues the run.
    """
    from toolkit.cli.run_folder import Run

    own = {name: value for name, value in options.items() if name in set(keywords_of(TrainOptions))}
    keys = {name: value for name, value in options.items() if name not in own}
    with in_python(TrainOptions):
        made = {**own, "shards": _place(shards), "out": out, "config": config_of(config, keys)}
    chosen = options_of(TrainOptions, made)
    with _call("train", chosen):
        if run_train(chosen):
            raise KeyboardInterrupt(f"stopped by a signal; train(..., {str(chosen.out)!r}, resume=True) continues")
    return Run(chosen.out)


def evaluate(model: str | os.PathLike[str], shards: ShardsLike, **options: Any) -> Evaluation:
    """Evaluate a model folder on a split, as `posters evaluate` does. Return the metrics, also per genre.

    The keywords are the options of the command, such as ``split="val"`` or ``report="REPORT"``. The files of the
    command are written as well. Raises UserError for bad input.
    """
    from toolkit.cli.run_evaluate import evaluate_model
    from toolkit.evaluation.options import EvaluateOptions

    chosen = options_of(EvaluateOptions, {**options, "model": model, "shards": _place(shards)})
    with _call("evaluate", chosen):
        return evaluate_model(chosen)


def compare(models: Sequence[str | os.PathLike[str]], shards: ShardsLike, **options: Any) -> pd.DataFrame:
    """Compare runs or model folders on a split, as `posters compare` does. Return one row per model and metric.

    The differences are to the first model. The keywords are the options of the command, such as ``split="val"`` or
    ``out="COMPARISON"``. The files of the command are written as well. Raises UserError for bad input.
    """
    import pandas as pd

    from toolkit.comparison.options import CompareOptions
    from toolkit.comparison.run import compare_models

    chosen = options_of(CompareOptions, {**options, "models": models, "shards": _place(shards)})
    with _call("compare", chosen):
        return pd.DataFrame(compare_models(chosen))


def tune(model: str | os.PathLike[str], shards: ShardsLike, **options: Any) -> Evaluation:
    """Choose thresholds and calibration of a model folder again, as `posters tune` does.

    The keywords are the options of the command, such as ``aim="precision>=0.6"``. Return the metrics on the
    validation split with the new thresholds. To set thresholds by hand, use `Predictor.thresholds`, or
    ``posters tune --set``. Raises UserError for bad input.
    """
    from toolkit.evaluation.options import TuneOptions
    from toolkit.evaluation.tune import tune_model

    if "set" in options or "by_hand" in options:
        remedy = "set model.thresholds['Drama'] = 0.5 of a loaded model, or use `posters tune --set`"
        raise UserError("option-unknown", f"tune needs a shard set; to set a threshold by hand, {remedy}")
    chosen = options_of(TuneOptions, {**options, "model": model, "shards": _place(shards)})
    with _call("tune", chosen):
        return tune_model(chosen)


def predict(
    model: str | os.PathLike[str] | Predictor, images: ImageLike | ShardSet | Iterable[ImageLike], **options: Any
) -> pd.DataFrame:
    """Predict the genres of images with a model folder or a loaded model, as `Predictor.predict` does.

    ``device``, ``precision`` and ``trust_code`` are keywords of `load_model`. All other keywords are those of
    `Predictor.predict`, such as ``threshold={"Drama": 0.9}`` or ``top_k=3``.
    """
    from toolkit.prediction.api import Predictor, load_model

    of_loading = () if isinstance(model, Predictor) else list(inspect.signature(load_model).parameters)[1:]
    known = [*list(inspect.signature(Predictor.predict).parameters)[2:], *of_loading]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known) or f"; the arguments are {', '.join(known)}"
            raise UserError("option-unknown", f"unknown argument {name!r}{hint}")
    if not isinstance(model, Predictor):
        model = load_model(model, **{name: options.pop(name) for name in of_loading if name in options})
    return model.predict(images, **options)


def config_of(config: str | os.PathLike[str] | Keys | Config | None, keys: Keys) -> Config:
    """Return a configuration. ``config``: see `train`. ``keys`` replace its values. Raises UserError for a bad value.

    The parser of the command reads everything, so a file, a key and a value mean the same as on the command line.
    """
    sections = [field.name for field in dataclasses.fields(Config)]
    words = []
    if isinstance(config, (str, os.PathLike)):
        words.append(f"--config={os.fspath(config)}")
    elif isinstance(config, Config):
        keys = {**_flat(dataclasses.asdict(config), sections), **_flat(keys, sections)}
    elif config is not None:
        keys = {**_flat(config, sections), **_flat(keys, sections)}
    words += [f"--{key}={_word(value)}" for key, value in _flat(keys, sections).items()]
    if not words:
        return Config()
    parser = Parser("train", COMMANDS)
    found = parser.instantiate(parser.parse(words))
    return Config(**{section: getattr(found, section) for section in sections})


def _flat(keys: Any, sections: list[str]) -> dict[str, Any]:
    """Return dotted key → value. Raises UserError for a name that is not a key."""
    if not isinstance(keys, Mapping):
        raise UserError("option-value", f"config must be a file or a dict of keys, not {type(keys).__name__}")
    found: dict[str, Any] = {}
    for name, value in keys.items():
        section = str(name).partition(".")[0]
        if section not in sections:
            known = [*sections, *keywords_of(TrainOptions)]
            whole = [f"{one}.{key}" for one, values in dataclasses.asdict(Config()).items() for key in values]
            near = did_you_mean(str(name), sections) if isinstance(value, Mapping) else ""
            near = near or meant(str(name), whole) or did_you_mean(str(name), known)
            hint = _KEY.sub(r"\1={'\2': ...}?", near) or f"; the sections of a configuration are {', '.join(sections)}"
            raise UserError("option-unknown", f"unknown argument {name!r}{hint}")
        if section != name:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{section}.{key}": one for key, one in value.items()}
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= {f"{section}.{key}": one for key, one in dataclasses.asdict(value).items()}
        else:
            key = MAIN_KEYS.get(section, "").partition(".")[2]
            hint = f"; did you mean {section}={{{key!r}: {value!r}}}?" if key and isinstance(value, str) else ""
            raise UserError("option-value", f"{section} must be a dict of keys, not {type(value).__name__}{hint}")
    return found


def _word(value: Any) -> str:
    """Return a value as text for the command line. Texts and paths stay unchanged, and other values become JSON."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    try:
        return json.dumps(value, default=lambda other: other.item())
    except (AttributeError, TypeError, ValueError):
        raise UserError("option-value", f"{value!r} cannot be a value of a configuration") from None


def _place(shards: ShardsLike) -> str | StoragePath:
    if not isinstance(shards, ShardSet):
        return shards
    if shards.split is not None:
        what = f"shards was opened with split={shards.split!r}, but this function needs the whole shard set"
        raise UserError("option-conflict", f"{what}: pass its path or URL instead")
    return shards.path


@contextlib.contextmanager
def _call(command: str, options: Any) -> Iterator[None]:
    """Turn out-of-memory errors of the block into UserError. Restore the settings of the user's process after it."""
    from toolkit.distributed.isolation import isolated

    with in_python(type(options)), explain_out_of_memory(lambda: memory_line(command, options)), isolated():
        yield
