"""What a report is about: the samples of a split, and what one model, or two, said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from toolkit.decisions.choose import Decisions
from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray, sigmoid
from toolkit.model_folder.folder import OWN_KEY, ModelFolder

#: The key of `Material.shard_set` under which its fingerprint is.
FINGERPRINT = "shard set fingerprint"


@dataclass(frozen=True, eq=False)
class ModelOutputs:
    """What a model said of N samples, G genres."""

    name: str
    """What the page calls it."""
    folder: ModelFolder
    logits: FloatArray
    """(N, G), as the network gave them."""

    @property
    def decisions(self) -> Decisions:
        """Calibration and thresholds."""
        return self.folder.decisions

    @property
    def ours(self) -> dict[str, Any]:
        """This toolkit's part of its config.json."""
        return self.folder.config[OWN_KEY]

    @property
    def calibrated(self) -> bool:
        return self.decisions.calibration != "none"

    @cached_property
    def probabilities(self) -> FloatArray:
        """(N, G), calibrated where the model is."""
        return self.decisions.probabilities(self.logits)

    @cached_property
    def uncalibrated(self) -> FloatArray:
        """(N, G) probabilities before calibration."""
        return sigmoid(self.logits)

    @cached_property
    def named(self) -> BoolArray:
        """(N, G): the genres it names."""
        return self.probabilities >= self.decisions.thresholds


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """N samples of a split with G genres, and what was said of them."""

    split: str
    genres: list[str]
    targets: BoolArray
    """(N, G)."""
    ids: list[str]
    """The users' ids."""
    picture: Callable[[int], bytes]
    """The encoded image of a sample."""
    train_prevalence: FloatArray
    """(G,) shares of training samples, which is all that the baselines know."""
    model: ModelOutputs
    other: ModelOutputs | None
    """The run to compare with."""
    shard_set: dict[str, str]
    """Name -> value, for people: folder, fingerprints; `FINGERPRINT` is compared as well."""
    command: str
    units: IntArray | None = None
    """(N,) numbers from 0, the same for near-duplicates; None where the set does not say."""

    def may_have_seen(self, said: ModelOutputs) -> bool:
        """Whether a model was trained on another shard set, whose training split may hold these samples."""
        return said.ours.get("shard_set") not in (None, self.shard_set[FINGERPRINT])

    def genres_of(self, sample: int) -> list[str]:
        """The true genres of a sample."""
        return [self.genres[column] for column in np.flatnonzero(self.targets[sample])]
