"""Lines that a training prints: a header, one aligned line per epoch, and the result at the end.

epoch  train loss  val loss    mAP  micro-F1  macro-F1  images/s  time left
 1/30      0.5312    0.4410  0.171     0.512     0.140       212     11 min  *
 2/30      0.4655    0.4289  0.193     0.538     0.166       218     11 min  *

A star marks an epoch that was the best so far. The main process calls the functions of this module.
"""

from __future__ import annotations

import csv
import logging
import math
import shlex
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.dataset.manifest import Manifest
from shards.dataset.store import RemoteShards, ShardStore
from shards.errors import without_secrets
from shards.log_lines import Shown
from toolkit.data.loader.timing import Bottleneck
from toolkit.metrics.registry import PLACES, format_number

if TYPE_CHECKING:
    from toolkit.training.checkpoints.checkpoint import Progress
    from toolkit.training.setup import TrainingSetup

log = logging.getLogger(__name__)

Column = tuple[str, str, str]
LOSSES: list[Column] = [("train loss", "train_loss", ".4f"), ("val loss", "val_loss", ".4f")]
METRICS: list[Column] = [(metric.column, f"val_{metric.key}", ".3f") for metric in PLACES["epochs"]]
SPEED: Column = ("images/s", "images_per_s", ".0f")


class EpochLines:
    """Logs one line per epoch, and the bottleneck of the speed if it changes."""

    def __init__(self, epochs: int, steps: int) -> None:
        """``epochs``: largest number of epochs. ``steps``: number of updates per epoch."""
        self.epochs, self.steps = epochs, steps
        self.began, self.updates, self.header = time.perf_counter(), 0, True
        self.bottleneck: Bottleneck | None = None
        """What limited the speed of the epoch."""
        self.logged_cause: str | None = None
        """Cause of the last bottleneck that was logged. None if no line was logged."""
        self.previous_cause: str | None = None
        """Cause of the bottleneck of the epoch before."""

    def start(self, updates: int) -> None:
        """Start the clock of an epoch, or of the rest of an epoch. The run has made ``updates`` updates."""
        self.began, self.updates = time.perf_counter(), updates

    def epoch(self, row: Mapping[str, Any], *, best: bool) -> None:
        """Log the line of an epoch. ``row``: its row of epochs.csv. ``best``: whether it is the best so far."""
        number, left = row["epoch"] + 1, self._seconds_left(row["epoch"] + 1, row["update"])
        columns, place = [*columns_of(row), SPEED], f"{number}/{self.epochs}"
        titles = ["epoch", *(title for title, _, _ in columns), "time left"]
        widths = [max(5, len(f"{self.epochs}/{self.epochs}")), *(max(6, len(title)) for title in titles[1:])]
        if self.header:
            self.header = False
            log.info("%s", _aligned(titles, widths), extra={"shown": Shown("bold", text_only=True)})
        cells = [place, *(format_number(row[key], spec) for _, key, spec in columns), duration(left)]
        line = _aligned(cells, widths) + "  *" * best
        facts = {
            "event": "epoch", **row, "message": f"epoch {place}", "epoch": number, "epochs": self.epochs, "best": best,
            "seconds_left": left,
        }  # fmt: skip
        log.info("%s", line, extra={"shown": Shown("bold green" if best else "", facts)})
        self._log_bottleneck(number)

    def _log_bottleneck(self, number: int) -> None:
        """Log the bottleneck of the first epoch, and a new bottleneck if two epochs in a row have it."""
        if self.bottleneck is None:
            return
        cause, line = self.bottleneck
        if cause != self.logged_cause and (self.logged_cause is None or cause == self.previous_cause):
            self.logged_cause = cause
            log.info("epoch %d: %s", number, line, extra={"shown": Shown("dim")})
        self.previous_cause = cause

    def _seconds_left(self, done: int, updates: int) -> float:
        """Return the seconds until the last epoch ends, if each epoch with its validation takes as long as this one."""
        each = (time.perf_counter() - self.began) / max(updates - self.updates, 1)
        return each * self.steps * (self.epochs - done)


def columns_of(row: Iterable[str]) -> list[Column]:
    """Return (title, key of the row, format) for each loss and metric. Metrics of the user are at the end."""
    known = [*LOSSES, *METRICS]
    own = [key for key in row if key.startswith("val_") and key not in {key for _, key, _ in known}]
    return known + [(key.removeprefix("val_"), key, ".3f") for key in own]


def _aligned(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(map(str.rjust, cells, widths))


def duration(seconds: float) -> str:
    """Return a duration in one or two units. It is "-" for 0.

    >>> duration(42.3), duration(754), duration(11100), duration(200000)
    ('43 s', '13 min', '3 h 5 min', '2 d 7 h')
    """
    if seconds <= 0:
        return "-"
    if seconds <= 90:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    if minutes <= 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    days, rest = divmod(hours, 24)
    return f"{days} d {rest} h" if days else f"{hours} h {minutes} min"


def log_result(setup: TrainingSetup, state: Progress) -> None:
    """Log the kept epoch with its figures, the files, and the next command. ``state``: the progress at the end."""
    out, best, epochs = setup.out, state.best_epoch + 1, state.epoch
    figures, command = _kept_figures(out / "epochs.csv", best), next_command(out, setup.train.store, setup.manifest)
    columns = [column for column in columns_of(figures) if column not in LOSSES[:1]]
    text = ", ".join(f"{title} {format_number(figures.get(key), spec)}" for title, key, spec in columns)
    facts = {
        "event": "end", **figures, "message": f"kept epoch {best} of {epochs}", "epoch": best, "epochs": epochs,
        "model": str(out / "model"), "next": command,
    }  # fmt: skip
    log.info("kept epoch %d of %d: %s", best, epochs, text, extra={"shown": Shown("bold green", facts, always=True)})
    for line in (f"model in {out / 'model'}, figures of all epochs in {out / 'epochs.csv'}", f"next: {command}"):
        log.info("%s", line, extra={"shown": Shown(always=True, text_only=True)})


def next_command(out: Path, store: ShardStore, manifest: Manifest) -> str:
    """Return the command that evaluates the run's model, in the form that a shell reads."""
    words = ["posters", "evaluate", "--model", str(out / "model"), "--shards", without_secrets(str(store))]
    if "test" not in manifest.by_split:
        words += ["--split", "val"]
    if isinstance(store, RemoteShards) and store.cache.options.folder:
        words += ["--cache-dir", str(store.cache.options.folder)]
    return shlex.join([*words, "--report", str(out / "report")])


def _kept_figures(path: Path, epoch: int) -> dict[str, float | None]:
    """Return the numbers of an epoch in epochs.csv, None for empty values. Return {} if the file has no such row."""
    with open(path, newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["epoch"] == str(epoch - 1)]
    figures = [(key, value) for row in rows for key, value in row.items() if key.startswith(("train_", "val_"))]
    return {key: float(value) if value else None for key, value in figures}
