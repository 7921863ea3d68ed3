"""The registry of trackers, which record the metrics of a run in addition to its CSV logs.

To add a tracker, add a row to TRACKERS, a dataclass of its options, and a function like those in training/trackers.py.
A tracker of accelerate needs only a row: its options are passed through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class TensorBoardOptions:
    """The tracker that writes events to RUN/tensorboard. It has no options."""


class Tracker(NamedTuple):
    """One entry of the registry."""

    options: type | None
    """Dataclass of the tracker's options. check_config accepts only its fields as options, or any option if None."""
    package: str
    """Required package, or "" if there is none. The tracker is disabled if the package is not installed."""
    made_by: str = ""
    """MODULE:FUNCTION. The function takes (run folder, options) and returns a GeneralTracker that is not started. If it
    is empty, accelerate's tracker of this name is used."""


#: Key of train.trackers → the tracker.
TRACKERS = {
    "tensorboard": Tracker(TensorBoardOptions, "tensorboard", "toolkit.training.trackers:tensorboard"),
    "wandb": Tracker(None, "wandb"),
    "mlflow": Tracker(None, "mlflow"),
    "trackio": Tracker(None, "trackio"),
    "comet_ml": Tracker(None, "comet_ml"),
    "aim": Tracker(None, "aim"),
    "clearml": Tracker(None, "clearml"),
    "dvclive": Tracker(None, "dvclive"),
    "swanlab": Tracker(None, "swanlab"),
}
