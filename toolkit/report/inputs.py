"""The data of a report: the samples of a split, and the outputs of one or two models for these samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from toolkit.decisions.decisions import Decisions
from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray, sigmoid
from toolkit.metrics.registry import Metric
from toolkit.metrics.weighted import NO_SCORES, NOTHING_NAMED, Outcome
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
    """(N, G) logits before calibration."""

    @property
    def decisions(self) -> Decisions:
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
        """(N, G) probabilities, calibrated if the model has a calibration."""
        return self.decisions.probabilities(self.logits)

    @cached_property
    def uncalibrated(self) -> FloatArray:
        """(N, G) probabilities before calibration."""
        return sigmoid(self.logits)

    @cached_property
    def named(self) -> BoolArray:
        """(N, G) bool: whether the probability of a genre reaches the threshold of this genre."""
        return self.probabilities >= self.decisions.thresholds


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """The N samples of a split with G genres, and the outputs of the models for these samples."""

    split: str
    genres: list[str]
    targets: BoolArray
    """(N, G) bool: whether a sample has a genre."""
    ids: list[str]
    """Ids of the samples, as in the metadata of the user."""
    picture: Callable[[int], bytes]
    """Function from the number of a sample to the encoded image of the sample."""
    train_prevalence: FloatArray
    """(G,) shares of the genres among the training samples. The baselines use these shares."""
    model: ModelOutputs
    other: ModelOutputs | None
    """Outputs of the model that is given with --compare. None without --compare."""
    shard_set: dict[str, str]
    """Address and fingerprints of the shard set. The keys are names for the page, such as `FINGERPRINT`."""
    command: str
    units: IntArray | None = None
    """(N,) index of each sample's group of near-duplicates. None if the shard set does not record near-duplicates."""
    weights: FloatArray | None = None
    """(N,) sample weights. None if the shard set has no weights."""
    made: str = ""
    """Date of the report. Empty if the page has no date."""
    own: Sequence[Metric] = ()
    """Metrics of the user (`toolkit.evaluation.results.own_metrics`)."""

    def outcome(self, named: BoolArray = NOTHING_NAMED, scores: FloatArray = NO_SCORES) -> Outcome:
        """Return the (N, G) predicted labels and probabilities as an outcome, with the targets and the weights."""
        return Outcome(self.targets, named, scores, self.weights)

    def may_have_seen(self, outputs: ModelOutputs) -> bool:
        """Return whether the model was trained on a different shard set. That set can have samples of this report."""
        return outputs.ours.get("shard_set") not in (None, self.shard_set[FINGERPRINT])

    def genres_of(self, sample: int) -> list[str]:
        return [self.genres[column] for column in np.flatnonzero(self.targets[sample])]
