"""Start the trackers of toolkit/config/tracker_registry.py, and send them the config, rows, pictures and the model.

RunLog (run_log.py) sends its rows. A tracker must never end or block a training. Each tracker therefore works in a
thread of its own (`Guarded`).
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import re
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, TensorBoardTracker
from PIL import Image

from shards.errors import one_line
from shards.extras import install, load_object
from toolkit.config.extensions import is_place, make
from toolkit.config.io import config_dict
from toolkit.config.schema import Config
from toolkit.config.tracker_registry import TRACKERS, TensorBoardOptions

log = logging.getLogger(__name__)

#: Seconds that a tracker has to start, and to finish after the training. The model may be uploaded in this time.
START, FINISH = 120.0, 600.0
#: Project of a run in a tracker that has projects (or experiments).
PROJECT = "posters"
#: Trackers that the extra "trackers" installs.
IN_EXTRA = ("wandb", "mlflow", "trackio")
#: Escape codes of colours on a terminal.
_ESCAPES = re.compile(r"\x1b\[[\d;]*m")
#: Tracker of accelerate → its option for the name of the run.
RUN_NAME = {
    "wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name", "clearml": "task_name",
}  # fmt: skip
#: Tracker of accelerate → its option for the folder of its files, and the folder in the run folder. The files would
#: otherwise lie in the current folder.
FOLDER = {
    "wandb": ("dir", "."),
    "aim": ("logging_dir", "."),
    "swanlab": ("log_dir", "swanlab"),
    "dvclive": ("dir", "dvclive"),
}


class Guarded(GeneralTracker):
    """Runs the calls of a tracker in a thread of its own, in their order.

    If a call raises an exception, or the tracker does not start or finish in time, the tracker is off for the rest of
    the run, and one warning is logged.
    """

    requires_logging_directory = False

    def __init__(self, name: str, made: Callable[[], GeneralTracker], with_model: bool = True) -> None:
        super().__init__(_blank=True)
        self.name, self.made, self.with_model = name, made, with_model
        self.off = threading.Event()
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue()

    @property
    def tracker(self) -> Any:
        return self.inner.tracker

    def start(self) -> None:
        threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True).start()
        self._calls.put(self._start)
        self._wait(START, "did not start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._calls.put(lambda: _CONFIG.get(self.name, _store)(self.inner, values))

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._calls.put(lambda: self.inner.log(values, step=step, **kwargs))

    def picture(self, title: str, path: Path) -> None:
        """Send a PNG file."""
        self._calls.put(lambda: _PICTURES.get(self.name, _no_picture)(self.inner, title, path))

    def model(self, folder: Path) -> None:
        """Send a model folder, if the tracker has models and its option ``model`` is not false."""
        if self.with_model and self.name in _MODELS:
            self._calls.put(lambda: _MODELS[self.name](self.inner, folder))

    def finish(self) -> None:
        self._calls.put(lambda: self.inner.finish())
        self._wait(FINISH, "did not finish")

    def _start(self) -> None:
        self.inner = self.made()
        self.inner.start()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if isinstance(call, _Reached):
                call()
            elif not self.off.is_set():
                try:
                    call()
                except BaseException as error:  # a library may raise SystemExit
                    self._fail(f"{type(error).__name__}: {one_line(error)[:300]}")

    def _wait(self, seconds: float, what: str) -> None:
        """Wait until all calls so far are done, but at most ``seconds``."""
        if self.off.is_set():
            return
        reached = _Reached()
        self._calls.put(reached)
        if not reached.wait(seconds):
            self._fail(f"it {what} within {seconds:g} s")

    def _fail(self, why: str) -> None:
        if not self.off.is_set():
            self.off.set()
            line = "tracker %s is off for the rest of this run: %s; the training goes on"
            log.warning(line, self.name, why.rstrip(". "))


class _Reached(threading.Event):
    """A mark in the queue of calls."""

    def __call__(self) -> None:
        self.set()


def start_trackers(accelerator: Accelerator, config: Config, out: Path) -> None:
    """Start the trackers in train.trackers, and send the config. Called by the main process before it logs rows."""
    for name, options in config.train.trackers.items():
        package = "" if is_place(name) else TRACKERS[name].package
        if package and not find_spec(package):
            command = install("trackers") if name in IN_EXTRA else f"pip install {package}"
            log.warning("tracker %s is not installed, so the training goes on without it: %s", name, command)
            continue
        own = dict(options)
        with_model = own.pop("model", True) if name in _MODELS else False
        tracker = Guarded(name, lambda name=name, own=own: _made(name, own, out), with_model)  # type: ignore[misc]
        tracker.start()
        tracker.store_init_configuration(_flat(config_dict(config)))
        accelerator.trackers.append(tracker)


def send_picture(accelerator: Accelerator, title: str, path: Path) -> None:
    """Send a PNG file to all trackers that have pictures."""
    for tracker in accelerator.trackers:
        tracker.picture(title, path)


def send_model(accelerator: Accelerator, folder: Path) -> None:
    """Send a model folder to all trackers that have models."""
    for tracker in accelerator.trackers:
        tracker.model(folder)


def tensorboard(out: Path, options: TensorBoardOptions) -> GeneralTracker:
    """Return a tracker that writes events to RUN/tensorboard."""
    return TensorBoardTracker("tensorboard", out)


def _made(name: str, options: dict[str, Any], out: Path) -> GeneralTracker:
    if is_place(name):
        own: GeneralTracker = make("tracker", name, options, f"train.trackers.{name}", out=out)
        return own
    entry = TRACKERS[name]
    if entry.made_by:
        made: GeneralTracker = load_object(entry.made_by)(out, entry.options(**options) if entry.options else options)
        return made
    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # its messages then have the form of --log
        import mlflow

        if uri := options.pop("tracking_uri", None):
            mlflow.set_tracking_uri(uri)
    project = options.pop("project", options.pop("experiment_name", PROJECT) if name == "mlflow" else PROJECT)
    if name in RUN_NAME:
        options.setdefault(RUN_NAME[name], out.resolve().name)
    if name in FOLDER:
        option, folder = FOLDER[name]
        options.setdefault(option, str(out / folder))
    if name == "wandb":
        os.environ.setdefault("WANDB_SILENT", "true")  # its lines would stand between those of the training
    elif name == "dvclive":  # it would commit to the user's Git repository, and turn that into a DVC repository
        options = {"save_dvc_exp": False, "dvcyaml": False, **options}
    elif name == "aim":  # accelerate's name of the project is the name of the run
        options.setdefault("experiment", project)
        project = out.resolve().name
    elif name == "comet_ml" and "experiment_config" not in options:
        import comet_ml

        config = comet_ml.ExperimentConfig(name=out.resolve().name, offline_directory=str(out / "comet_ml"))
        options["experiment_config"] = config
    elif name == "trackio":
        _quiet_trackio()
    return kind(project, **options)


def _quiet_trackio() -> None:
    """Log what trackio prints only with --debug, so that it does not appear among the lines of the training."""

    def say(*words: object, **options: Any) -> None:
        line = one_line(_ESCAPES.sub("", " ".join(map(str, words))))
        log.log(logging.WARNING if "warning" in line.lower() else logging.DEBUG, "trackio: %s", line)

    for module in ("trackio", "trackio.run", "trackio.utils"):
        vars(importlib.import_module(module))["print"] = say  # trackio has no option for it


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return dotted key → value, e.g. ``optim.lr``. Lists become text."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _store(tracker: GeneralTracker, values: dict[str, Any]) -> None:
    tracker.store_init_configuration(values)


def _tensorboard_config(tracker: Any, values: dict[str, Any]) -> None:
    # store_init_configuration would write a run of its own beside the events.
    tracker.tracker.add_text("config", "\n".join(f"    {name}: {value}" for name, value in values.items()))


def _no_picture(tracker: Any, title: str, path: Path) -> None:
    """Do nothing: the tracker has no pictures."""


def _wandb_picture(tracker: Any, title: str, path: Path) -> None:
    tracker.log_images({title: [Image.open(path)]})


def _tensorboard_picture(tracker: Any, title: str, path: Path) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB"))[None]
    tracker.log_images({title: pixels}, dataformats="NHWC")


def _mlflow_picture(tracker: Any, title: str, path: Path) -> None:
    tracker.log_artifact(str(path))


def _trackio_picture(tracker: Any, title: str, path: Path) -> None:
    import trackio

    tracker.log({title: trackio.Image(str(path))})


def _wandb_model(tracker: Any, folder: Path) -> None:
    tracker.tracker.log_artifact(str(folder), name=_artefact_name(folder), type="model")


def _mlflow_model(tracker: Any, folder: Path) -> None:
    tracker.log_artifacts(str(folder), "model")


def _trackio_model(tracker: Any, folder: Path) -> None:
    import trackio

    trackio.log_artifact(str(folder), name=_artefact_name(folder), type="model")


def _artefact_name(folder: Path) -> str:
    """Return the name of the run with characters that all trackers allow."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", f"{folder.resolve().parent.name}-model")


#: Name of a tracker → how it gets the config, pictures and models, if it has them.
_CONFIG: dict[str, Callable[..., None]] = {"tensorboard": _tensorboard_config}
_PICTURES: dict[str, Callable[..., None]] = {
    "wandb": _wandb_picture,
    "tensorboard": _tensorboard_picture,
    "mlflow": _mlflow_picture,
    "trackio": _trackio_picture,
}
_MODELS: dict[str, Callable[..., None]] = {"wandb": _wandb_model, "mlflow": _mlflow_model, "trackio": _trackio_model}
