"""Start the trackers of toolkit/config/tracker_registry.py. RunLog (run_log.py) sends its rows to the trackers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker

from shards.extras import load_object
from toolkit.config.tracker_registry import TRACKERS, TensorBoardOptions
from toolkit.training.run_log import naming


def start_trackers(accelerator: Accelerator, wanted: dict[str, dict[str, Any]], out: Path) -> None:
    """Start the trackers in ``wanted`` if they are installed. Called by the main process before it logs rows."""
    for name, options in wanted.items():
        entry = TRACKERS[name]
        if not entry.package or find_spec(entry.package):
            with naming(out / name):
                tracker = load_object(entry.made_by)(out, entry.options(**options))
                tracker.start()
            accelerator.trackers.append(tracker)


def tensorboard(out: Path, options: TensorBoardOptions) -> GeneralTracker:
    """Return a tracker that writes events to RUN/tensorboard."""
    return TensorBoardTracker("tensorboard", out)
