"""The registry of trackers, which record the metrics of a run besides its CSV logs.

To add a tracker, add a row to TRACKERS, a dataclass of its options, and a function like those in training/trackers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class TensorBoardOptions:
    """Events in RUN/tensorboard. No options."""


class Tracker(NamedTuple):
    """One entry of the registry."""

    options: type
    """A dataclass; check_config compares the options in train.trackers with its fields."""
    package: str
    """Required package; the tracker is disabled if the package is not installed. Empty: no package is required."""
    made_by: str
    """MODULE:FUNCTION of (RUN, the options) → an accelerate.tracking.GeneralTracker that is not started."""


#: Key of train.trackers → its entry.
TRACKERS = {"tensorboard": Tracker(TensorBoardOptions, "tensorboard", "toolkit.training.trackers:tensorboard")}
