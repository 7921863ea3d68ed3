"""Train and evaluate multi-label image classifiers on WebDataset shards, and predict labels of images.

import toolkit
shards = toolkit.build_shards(images="posters", metadata="posters.csv", out="SHARDS")
run = toolkit.train(shards, "RUN")
toolkit.evaluate(run.model, shards).figures  # metrics on the test split
model = toolkit.load_model(run.model)
model.predict(["poster.jpg"])                # returns a pandas DataFrame
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shards.errors import UserError

if TYPE_CHECKING:
    from toolkit.cli.functions import build_shards, compare, evaluate, open_shards, predict, train, tune
    from toolkit.cli.run_folder import Run
    from toolkit.config.extensions import register
    from toolkit.data.image_transforms import EvalTransform, TrainTransform
    from toolkit.data.shard_batch import ShardBatch
    from toolkit.data.shard_loader import ShardLoader
    from toolkit.data.sources.shard_set import ShardSet
    from toolkit.evaluation.results import Evaluation
    from toolkit.prediction.api import Predictor, load_model

__version__ = "0.1.0"

__all__ = [
    "EvalTransform", "Evaluation", "Predictor", "Run", "ShardBatch", "ShardLoader", "ShardSet", "TrainTransform",
    "UserError", "build_shards", "compare", "evaluate", "load_model", "open_shards", "predict", "register", "train",
    "tune",
]  # fmt: skip

_FUNCTIONS = "toolkit.cli.functions"
#: Name → its module. A module is imported at the first use of its name, because torch takes seconds.
_PLACES = {
    **dict.fromkeys(("build_shards", "compare", "evaluate", "open_shards", "predict", "train", "tune"), _FUNCTIONS),
    "ShardBatch": "toolkit.data.shard_batch",
    "ShardLoader": "toolkit.data.shard_loader",
    **dict.fromkeys(("EvalTransform", "TrainTransform"), "toolkit.data.image_transforms"),
    "ShardSet": "toolkit.data.sources.shard_set",
    "Evaluation": "toolkit.evaluation.results",
    **dict.fromkeys(("Predictor", "load_model"), "toolkit.prediction.api"),
    "Run": "toolkit.cli.run_folder",
    "register": "toolkit.config.extensions",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        import warnings

        from shards.extras import load_object

        with warnings.catch_warnings():  # in a notebook without ipywidgets, this module of several libraries warns
            warnings.simplefilter("ignore")
            import tqdm.auto  # noqa: F401
        return load_object(f"{_PLACES[name]}:{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
