"""The data of a report: the samples of a split, and the outputs of one or two models for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from toolkit.decisions.choose import Decisions
from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray, sigmoid
from toolkit.model_folder.folder import OWN_KEY, ModelFolder

#: Key of the fingerprint in `ReportInputs.shard_set`.
FINGERPRINT = "shard set fingerprint"


@dataclass(frozen=True, eq=False)
class ModelOutputs:
    """Outputs of a model for N samples and G genres."""

    name: str
    """Name of the model on the page."""
    folder: ModelFolder
    logits: FloatArray
    """(N, G), before calibration."""

    @property
    def decisions(self) -> Decisions:
        """Calibration and thresholds."""
        return self.folder.decisions

    @property
    def ours(self) -> dict[str, Any]:
        """The entries of this toolkit in config.json of the model folder."""
        return self.folder.config[OWN_KEY]

    @property
    def calibrated(self) -> bool:
        return self.decisions.calibration != "none"

    @cached_property
    def probabilities(self) -> FloatArray:
        """(N, G), calibrated if the model is calibrated."""
        return self.decisions.probabilities(self.logits)

    @cached_property
    def uncalibrated(self) -> FloatArray:
        """(N, G) probabilities before calibration."""
        return sigmoid(self.logits)

    @cached_property
    def named(self) -> BoolArray:
        """(N, G): whether a probability reaches its threshold."""
        return self.probabilities >= self.decisions.thresholds


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """N samples of a split with G genres, and the outputs of the models for them."""

    split: str
    genres: list[str]
    targets: BoolArray
    """(N, G)."""
    ids: list[str]
    """The N ids, as in the user's metadata."""
    picture: Callable[[int], bytes]
    """Returns the encoded image of a sample, by its number."""
    train_prevalence: FloatArray
    """(G,) shares of the training samples, from which the baselines are made."""
    model: ModelOutputs
    other: ModelOutputs | None
    """The run to compare with; None without --compare."""
    shard_set: dict[str, str]
    """Name → value, for the page: folder and fingerprints. The value of `FINGERPRINT` is also compared."""
    command: str
    units: IntArray | None = None
    """(N,) group numbers from 0, the same for near-duplicates; None if the set does not record them."""

    def may_have_seen(self, outputs: ModelOutputs) -> bool:
        """Return whether the model was trained on another shard set. Its training split may contain these samples."""
        return outputs.ours.get("shard_set") not in (None, self.shard_set[FINGERPRINT])

    def genres_of(self, sample: int) -> list[str]:
        """Return the true genres of a sample."""
        return [self.genres[column] for column in np.flatnonzero(self.targets[sample])]
