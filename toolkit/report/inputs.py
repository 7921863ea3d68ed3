"""What a report is about: the samples of a split, and what one model, or two, said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.metrics.multilabel import BoolArray, FloatArray, IntArray, sigmoid
from toolkit.metrics.weighted import Answers
from toolkit.model_folder.folder import OURS, ModelFolder

#: The key of `Material.shard_set` under which its fingerprint is.
FINGERPRINT = "shard set fingerprint"


@dataclass(frozen=True, eq=False)
class Said:
    """What a model said of N samples, G genres, and how it came to decide."""

    name: str
    """What the page calls it."""
    path: Path
    """Its model folder."""
    config: dict[str, Any]
    """config.json of that folder."""
    fingerprint: str
    """SHA-256 of its weights."""
    logits: FloatArray
    """(N, G), as the network gave them."""
    probabilities: FloatArray
    """(N, G), calibrated where the model is."""
    named: BoolArray
    """(N, G)."""
    thresholds: FloatArray
    """(G,) of calibrated probabilities."""
    global_threshold: float
    """The best single one of validation."""
    source: str
    """In words, how the thresholds were chosen."""
    calibration: str
    """none, temperature or platt."""
    decisions: str
    """Fingerprint of calibration and thresholds."""

    @property
    def trained_on(self) -> str | None:
        """Fingerprint of the shard set of its training; None if unknown."""
        return self.config.get(OURS, {}).get("shard_set")

    @property
    def answers(self) -> Answers:
        """For the metrics."""
        return Answers(self.named, self.probabilities)

    @property
    def uncalibrated(self) -> FloatArray:
        """(N, G) probabilities before calibration."""
        return sigmoid(self.logits)

    @classmethod
    def by(cls, folder: ModelFolder, logits: np.ndarray, name: str) -> Said:
        """From a loaded model folder and its (N, G) logits."""
        decisions = folder.decisions
        return cls(
            name,
            folder.path,
            folder.config,
            folder.fingerprint,
            np.asarray(logits, dtype=np.float64),
            decisions.probabilities(logits),
            decisions.named(logits),
            decisions.thresholds,
            decisions.global_threshold,
            decisions.source,
            decisions.calibration,
            decisions.fingerprint,
        )


@dataclass(frozen=True, eq=False)
class Material:
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
    model: Said
    other: Said | None
    """The run to compare with."""
    shard_set: dict[str, str]
    """Name -> value, for people: folder, fingerprints; `FINGERPRINT` is compared as well."""
    command: str
    units: IntArray | None = None
    """(N,) numbers from 0, the same for near-duplicates; None where the set does not say."""

    def may_have_seen(self, said: Said) -> bool:
        """Whether a model was trained on another shard set, whose training split may hold these samples."""
        return said.trained_on is not None and said.trained_on != self.shard_set.get(FINGERPRINT)

    def genres_of(self, sample: int) -> list[str]:
        """The true genres of a sample."""
        return [self.genres[column] for column in np.flatnonzero(self.targets[sample])]
