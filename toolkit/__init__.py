"""Train and evaluate multi-label image classifiers on WebDataset shards, and predict labels of images.

import toolkit
model = toolkit.load_model("RUN/model")
model.predict(["poster.jpg"])                # returns a pandas DataFrame
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.config.extensions import register
    from toolkit.prediction.api import Predictor, load_model

__all__ = ["Predictor", "load_model", "register"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use. Some of their modules import torch, which takes seconds."""
    if name == "register":
        from toolkit.config.extensions import register

        return register
    if name in __all__:
        from toolkit.prediction import api as predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
