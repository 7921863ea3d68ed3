"""Choose the calibration and the thresholds of a model on validation, and save both as its `Decisions`.

The steps themselves are in other modules: the objectives of thresholds (--aim) in objective.py and label_thresholds.py,
the calibration methods in calibration.py, and the comparisons on held-out samples in cross_fit.py.

`Decisions` are saved in labels.json. All commands compute probabilities and predicted labels with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shards.dataset.labels import LabelSet
from shards.errors import printable_line, some
from shards.schema import check_as
from shards.storage.files import fingerprint
from toolkit.config.model_files import DECIDE_AGAIN, DecisionsFile, check_decisions
from toolkit.config.schema import DecideConfig
from toolkit.decisions.cross_fit import SINGLE, Choice, CrossFit, choice_name
from toolkit.decisions.objective import Aim
from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray, sigmoid

#: The words of ``Decisions.source`` before the labels whose thresholds were set by hand.
BY_HAND = "; set by hand: "


@dataclass(frozen=True, eq=False)
class Decisions:
    """A model's calibration and thresholds: (G,) float64 arrays in the order of the labels."""

    thresholds: FloatArray
    """Thresholds on calibrated probabilities."""
    scale: FloatArray
    """Positive scales. The calibrated logit is scale * logit + bias. Without calibration, a scale is 1 and a bias 0."""
    bias: FloatArray
    global_threshold: float
    """The best single threshold for all labels, for comparison."""
    aim: str = "none"
    calibration: str = "none"
    source: str = "given"
    """Origin of the thresholds, as a phrase for users."""
    chosen_on: dict[str, Any] = field(default_factory=dict)
    """The split, the number of samples, and the metrics on held-out samples that led to the choice.

    After `with_thresholds`, ``by_hand`` maps each label with a given threshold to its chosen threshold.
    """

    @classmethod
    def plain(cls, thresholds: ArrayLike, source: str = "given") -> Decisions:
        """Return decisions with given (G,) thresholds on uncalibrated probabilities."""
        array = np.array(thresholds, dtype=np.float64)
        size = len(array)
        return cls(array, np.ones(size), np.zeros(size), float(np.median(array)), source=source)

    def with_thresholds(self, given: Mapping[str, float], labels: LabelSet) -> Decisions:
        """Return these decisions with the thresholds that the user gives for some labels. Other thresholds stay."""
        values = self.thresholds.copy()
        for label, value in given.items():
            values[labels.index[label]] = value
        before = {label: float(self.thresholds[labels.index[label]]) for label in given}
        earlier = self.chosen_on.get("by_hand", {})
        chosen = before | {label: value for label, value in earlier.items() if label in labels.index}
        shown = [f"{printable_line(label[:100])} {values[labels.index[label]]:g}" for label in chosen]
        source = f"{self.source.partition(BY_HAND)[0]}{BY_HAND}{some(shown, 20)}"
        return replace(self, thresholds=values, source=source, chosen_on={**self.chosen_on, "by_hand": chosen})

    def logits(self, logits: ArrayLike) -> FloatArray:
        """Return (..., G) calibrated logits in float64. Without calibration they equal the input bit by bit."""
        return self.scale * np.asarray(logits, dtype=np.float64) + self.bias

    def probabilities(self, logits: ArrayLike) -> FloatArray:
        """Return the (..., G) calibrated probabilities of logits, in float64."""
        return sigmoid(self.logits(logits))

    def named(self, logits: ArrayLike) -> BoolArray:
        """Return (..., G) bool: whether the calibrated probability reaches the threshold."""
        return self.probabilities(logits) >= self.thresholds

    @property
    def per_label(self) -> bool:
        """Whether the thresholds differ between labels."""
        return bool(np.ptp(self.thresholds) > 0)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a hash of all thresholds, scales and biases."""
        return fingerprint([values.tolist() for values in (self.thresholds, self.scale, self.bias)])[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of labels.json for these decisions. Floats keep their exact values."""
        calibration: dict[str, Any] = {"method": self.calibration}
        if self.calibration != "none":
            calibration |= {"scale": self.scale.tolist(), "bias": self.bias.tolist()}
        return {
            "thresholds": self.thresholds.tolist(),
            "threshold_source": self.source,
            "global_threshold": self.global_threshold,
            "aim": self.aim,
            "calibration": calibration,
            "chosen_on": self.chosen_on,
            "decisions": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], num_labels: int, where: object) -> Decisions:
        """Read the keys of `to_dict`. Only the thresholds are required. ``where`` names the file in errors.

        Raises UserError if a value is missing, not finite or out of range, or if the number of values is wrong.
        """
        found = check_as(dict(raw), DecisionsFile, where, "labels file", DECIDE_AGAIN)
        check_decisions(found, num_labels, where)
        thresholds, calibration = np.array(found.thresholds, np.float64), found.calibration
        scale, bias = np.ones(num_labels), np.zeros(num_labels)
        if calibration.method != "none":
            scale, bias = np.array(calibration.scale, np.float64), np.array(calibration.bias, np.float64)
        common = found.global_threshold
        return cls(
            thresholds,
            scale,
            bias,
            float(np.median(thresholds)) if common is None else common,
            found.aim,
            calibration.method,
            found.threshold_source,
            dict(raw.get("chosen_on", {})),  # keeps unknown keys of later versions
        )


def choose_decisions(
    truth: BoolArray,
    scores: FloatArray,
    decide: DecideConfig | None = None,
    split: str = "val",
    groups: IntArray | None = None,
) -> Decisions:
    """Choose a calibration, then thresholds for ``decide.aim``, on (N, G) logits ``scores`` and (N, G) targets.

    groups (N,): equal numbers for near-duplicates. None if there are no near-duplicates. The order of the samples does
    not change the result. Raises UserError for an unknown aim.
    """
    fits = CrossFit(truth, scores, decide, groups)
    return decisions_of(fits.choose(), fits, split)


def decisions_of(choice: Choice, fits: CrossFit, split: str = "val") -> Decisions:
    """Convert a choice to `Decisions`."""
    chosen_on: dict[str, Any] = {"split": split, "samples": len(fits.truth)}
    if choice.calibrations:
        chosen_on["held_out"] = choice.calibrations
    if choice.compared:
        chosen_on["cross_fit"] = choice.compared
    if choice.thresholds.weight is not None:
        chosen_on["macro_weight"], chosen_on["slack"] = choice.thresholds.weight, choice.slack
    return Decisions(
        choice.thresholds.values,
        choice.calibration.scale,
        choice.calibration.bias,
        choice.thresholds.single,
        str(fits.aim),
        choice.calibration.method,
        describe(fits.aim, choice, split),
        chosen_on,
    )


def describe(aim: Aim, choice: Choice, split: str) -> str:
    """Return the origin of thresholds as a phrase for users."""
    where = "validation" if split == "val" else split
    if choice.slack is None:
        goal = {
            "f": f"the one threshold with the highest micro-F{aim.value:g}",
            "precision": f"the lowest single threshold at which micro-precision reaches {aim.value:g}",
            "recall": f"the highest single threshold at which micro-recall reaches {aim.value:g}",
        }[aim.kind]
        found = f"{goal} on the {where} split"
        return f"{found}; thresholds per genre did not help clearly in cross-validation" if choice.compared else found
    goal = {
        "f": f"for micro-F{aim.value:g} plus macro-F{aim.value:g}, rare genres near the single threshold",
        "precision": f"for precision of at least {aim.value:g} in each genre",
        "recall": f"for recall of at least {aim.value:g} in each genre",
    }[aim.kind]
    found = f"one per genre, {goal}, chosen on the {where} split"
    if not choice.compared:
        return found
    before, after = (choice.compared[key]["macro_f"] for key in (SINGLE, choice_name(choice.slack)))
    return f"{found}; in cross-validation macro-F{aim.value:g} {before:.3f} \u2192 {after:.3f}"
