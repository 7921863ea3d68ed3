"""The registry of trackers: where the figures of a run go besides its CSV logs.

A new tracker is a row of TRACKERS with a dataclass of its options, and a function like those of training/trackers.py.
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
    """A dataclass; check_config holds what train.trackers gives to its fields."""
    package: str
    """What must be installed; without it the tracker is idle. Empty: nothing."""
    made_by: str
    """MODULE:FUNCTION, (RUN, the options) → an accelerate.tracking.GeneralTracker that is not started."""


#: By key of train.trackers.
TRACKERS = {"tensorboard": Tracker(TensorBoardOptions, "tensorboard", "toolkit.training.trackers:tensorboard")}
