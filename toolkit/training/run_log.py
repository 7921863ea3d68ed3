"""Write RUN/log.csv every few updates and RUN/epochs.csv every epoch. accelerate's trackers get the same rows."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from shards.errors import UserError, one_line
from shards.storage.files import atomic_write
from toolkit.distributed.collectives import by_main
from toolkit.metrics.registry import PLACES

STEP_FIELDS = (
    "update", "epoch", "step", "loss", "lr", "images_per_s", "data_wait", "decode_cores", "copy",
    "skipped_updates", "loss_scale",
)  # fmt: skip
EPOCH_FIELDS = (
    "epoch", "update", "train_loss", "val_loss", *(f"val_{metric.key}" for metric in PLACES["epochs"]), "threshold",
    "lr", "images_per_s", "data_wait", "decode_cores", "copy", "data_errors", "skipped_updates", "seconds",
)  # fmt: skip


class RunLog:
    """Writes the logs on the main process. All ranks make the same calls, and all raise an error if writing fails.

    A resumed run first removes the rows that it will write again: in log.csv the rows after update ``updates``, in
    epochs.csv the rows from ``epoch`` on. ``columns``: columns of epochs.csv after EPOCH_FIELDS.
    """

    def __init__(
        self, accelerator: Accelerator, out: Path, updates: int, epoch: int, columns: Sequence[str] = ()
    ) -> None:
        self.accelerator = accelerator
        self.files = {out / "log.csv": STEP_FIELDS, out / "epochs.csv": (*EPOCH_FIELDS, *columns)}
        self.steps, self.epochs = self.files
        by_main(accelerator, lambda: _cut(self.steps, STEP_FIELDS, "update", updates))
        by_main(accelerator, lambda: _cut(self.epochs, self.files[self.epochs], "epoch", epoch - 1))

    def step(self, row: dict[str, Any]) -> None:
        self._write(self.steps, row, {"train/loss": "loss", "train/lr": "lr", "train/images_per_s": "images_per_s",
                                      "train/data_wait": "data_wait", "train/loss_scale": "loss_scale"})  # fmt: skip

    def epoch(self, row: dict[str, Any]) -> None:
        names = {f"epoch/{name}": name for name in self.files[self.epochs] if name not in ("epoch", "update")}
        self._write(self.epochs, row, names)

    def _write(self, path: Path, row: dict[str, Any], tracked: dict[str, str]) -> None:
        by_main(self.accelerator, lambda: self._append(path, row, tracked))

    def _append(self, path: Path, row: dict[str, Any], tracked: dict[str, str]) -> None:
        fields = self.files[path]
        with naming(path), open(path, "a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, fields).writerow({name: _short(row[name]) for name in fields})
        values = {label: row[name] for label, name in tracked.items() if row[name] is not None}
        for tracker in self.accelerator.trackers:
            tracker.log(values, step=row["update"])


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add ``path`` to an OSError that has no file name, e.g. if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _cut(path: Path, fields: tuple[str, ...], counter: str, last: int) -> None:
    """Keep the rows whose column ``counter`` is at most ``last``. Raises UserError if the file is not a log."""
    kept: list[dict[str, str]] = []
    if path.exists():
        try:
            with open(path, newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                if foreign := set(reader.fieldnames or ()) - set(fields):
                    raise ValueError(f"it has columns that a log does not have: {', '.join(sorted(foreign))}")
                # the last row of a killed run may be incomplete and is then dropped
                kept = [r for r in reader if None not in r.values() and int(r[counter]) <= last]
        except (ValueError, KeyError, csv.Error) as error:
            raise UserError(
                "path-unreadable",
                f"{path} cannot be continued ({one_line(error)}): repair it, or move it away to start a new one",
            ) from None
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, fields)
        writer.writeheader()
        writer.writerows(kept)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
