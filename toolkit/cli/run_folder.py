"""A training's run folder in Python: its paths, its figures and its table of epochs."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from shards.errors import UserError, one_line
from shards.storage.kinds import RUN, near_name, other_kind
from toolkit.config.model_files import read_config
from toolkit.evaluation.results import figures_of
from toolkit.model_folder.folder import OWN_KEY


class Run:
    """A run folder that `posters train` or ``toolkit.train`` has written. Files are read at their first use."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a run folder. Raises UserError if ``path`` is something else."""
        if not isinstance(path, (str, os.PathLike)):
            raise UserError("option-value", f"path must be a path, not {type(path).__name__}")
        self.path = Path(path)
        if any((self.path / name).exists() for name in ("config.yaml", "model", "find-lr.csv")):
            return
        if not self.path.exists():
            raise UserError("path-missing", f"run folder not found: {self.path}{near_name(self.path)}")
        wrong = other_kind(self.path, RUN) or f"{self.path} is not a run folder; name the --out of a training"
        raise UserError("model-missing", wrong)

    @property
    def model(self) -> Path:
        """The model folder, RUN/model, with the weights of the best epoch."""
        return self.path / "model"

    def _written_model(self) -> Path:
        if not self.model.is_dir():
            raise self._unfinished("model folder")
        return self.model

    def _unfinished(self, what: str) -> UserError:
        remedy = "finish the training with resume=True, or name another run"
        return UserError("model-missing", f"{self.path} has no {what} yet: {remedy}")

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = read_config(self._written_model())[1][OWN_KEY]
        return facts

    @property
    def epoch(self) -> int:
        """The number of the kept epoch, counted from 1."""
        return int(self._facts["epoch"])

    @property
    def monitor(self) -> str:
        """The metric that chose the epoch: train.monitor."""
        return str(self._facts["monitor"])

    @property
    def score(self) -> float:
        """The value of ``monitor`` in the kept epoch, on the validation split."""
        return float(self._facts["score"])

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the training, as nested dicts."""
        config: dict[str, Any] = self._facts["training_config"]
        return config

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Metrics on the validation split, at the model's own thresholds: mAP, macro_f1, micro_f1, loss, ...

        The thresholds and the calibration were chosen on the same split, so all metrics that use them are too high.
        To compare or to publish, use `cross_fitted`, or `evaluate` on the test split.
        """
        path = self._written_model() / "metrics-val.json"
        try:
            return figures_of(json.loads(path.read_bytes()))
        except (OSError, ValueError, LookupError, TypeError) as error:
            remedy = f"`posters evaluate --model {self.path} --shards SHARDS --split val` writes it again"
            raise UserError("model-damaged", f"{path} cannot be read ({one_line(error)}): {remedy}") from None

    @property
    def cross_fitted(self) -> dict[str, Any]:
        """The validation metrics that the training printed for the kept epoch: loss, mAP, micro_f1, macro_f1.

        The F1 values are cross-fitted: the thresholds for one fold of the split were chosen on the other folds. Metrics
        of your own are included.
        """
        row = self.epochs.filter(regex="^val_").rename(columns=lambda name: name.removeprefix("val_")).loc[self.epoch]
        return dict(row.to_dict())

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Table with one row per epoch. The index is the number of the epoch, counted from 1 (epochs.csv: from 0)."""
        return self._table("epochs.csv").assign(epoch=lambda table: table["epoch"] + 1).set_index("epoch")

    @cached_property
    def log(self) -> pd.DataFrame:
        """Table of log.csv, with one row every train.log_steps updates. The index is the number of the update."""
        return self._table("log.csv").set_index("update")

    def _table(self, name: str) -> pd.DataFrame:
        try:
            return pd.read_csv(self.path / name)
        except FileNotFoundError:
            raise self._unfinished(name) from None
        except (OSError, ValueError) as error:
            raise UserError("path-unreadable", f"{self.path / name} cannot be read: {one_line(error)}") from None

    def __repr__(self) -> str:
        if not self.model.is_dir():
            return f"Run({str(self.path)!r})"
        return f"Run({str(self.path)!r}: {self.monitor} {self.score:.4g} in epoch {self.epoch})"
