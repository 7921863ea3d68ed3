"""Cross-fitting: compare calibrations and thresholds on samples that were not used to fit them.

The simplest decisions are one threshold for all labels on uncalibrated probabilities. Calibration and thresholds per
label have more parameters, which can overfit a small split. They are therefore fitted without one fold and measured on
that fold. They are used only if the gain on held-out samples is clear. Thresholds per label can lower micro-F, but only
by a limited share, the slack.

An outer cross-validation measures the whole choice on new samples: calibration and thresholds are chosen without one
fold, then applied to this fold. A fit that is needed several times is computed only once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from toolkit.config.model_files import Method
from toolkit.config.schema import DecideConfig
from toolkit.decisions.calibration import Calibration, choose_calibration, fit_calibration
from toolkit.decisions.folds import CLEAR_STANDARD_ERRORS, assign_folds, enough, in_order, standard_error
from toolkit.decisions.objective import parse_aim, single_threshold, thresholds_per_label
from toolkit.decisions.sweep import DEFAULT_THRESHOLD
from toolkit.metrics.helpers import BoolArray, FloatArray, IntArray, f_beta, sigmoid

#: The folds that a fit excludes.
Out = frozenset[int]
EVERYONE: Out = frozenset()
#: Micro-F may fall by the slack (a share of micro-F) plus this number of standard errors.
HARMLESS_STANDARD_ERRORS = 2.0
#: Key in `Choice.compared` for one threshold for all labels. `choice_name` returns the keys for thresholds per label.
SINGLE = "single"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Thresholds fitted on some samples."""

    values: FloatArray
    """(G,) thresholds on calibrated probabilities."""
    single: float
    """The best single threshold for all labels."""
    weight: float | None = None
    """Weight of macro-F in the objective of thresholds per label. None for any other objective."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Calibration and thresholds that were chosen on all samples, or on all samples outside of given folds."""

    calibration: Calibration
    thresholds: Thresholds
    slack: float | None
    """Largest share of micro-F that thresholds per label can lose. None for one threshold for all labels."""
    calibrations: dict[str, Any]
    """Method → its held-out loss and ECE. Empty if no methods were compared."""
    compared: dict[str, Any]
    """Key (SINGLE or from `choice_name`) → held-out F-measures. Empty if no thresholds were compared."""

    def named(self, logits: FloatArray) -> BoolArray:
        """Return the (n, G) predicted labels of (n, G) logits."""
        return _named(self.calibration, self.thresholds, logits)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Micro-F and macro-F of held-out predictions, and their (N,) derivatives by the weights of the samples."""

    micro: float
    macro: float
    """Mean F-measure of the labels with positives."""
    by_micro: FloatArray
    by_macro: FloatArray
    units: IntArray

    @classmethod
    def of(cls, truth: BoolArray, named: BoolArray, units: IntArray, beta: float) -> HeldOut:
        """Measure (N, G) predicted labels against targets."""
        hits, square = truth & named, beta * beta
        # F = (1 + b^2) * hits / bottom with bottom = b^2 * support + named. Its derivative by a sample's weight is
        # ((1 + b^2) * the sample's hits - F * the sample's bottom) / bottom.
        bottom = square * truth + named
        each = f_beta(hits.sum(axis=0), named.sum(axis=0), truth.sum(axis=0), beta)
        some = truth.any(axis=0)
        by_label = ((1.0 + square) * hits - each * bottom) / np.maximum(bottom.sum(axis=0), 1e-300)
        micro = float(f_beta(hits.sum(), named.sum(), truth.sum(), beta))
        by_micro = ((1.0 + square) * hits - micro * bottom).sum(axis=1) / max(bottom.sum(), 1e-300)
        macro = float(each[some].mean()) if some.any() else 0.0
        return cls(micro, macro, by_micro, by_label[:, some].sum(axis=1) / max(some.sum(), 1), units)

    def clearly_better(self, single: HeldOut, slack: float) -> bool:
        """Return whether these predictions are better than those of ``single``. `_choose_slack` has the rules."""
        gain, change = self.macro - single.macro, self.micro - single.micro
        surely = gain > CLEAR_STANDARD_ERRORS * standard_error(self.by_macro - single.by_macro, self.units)
        harm = HARMLESS_STANDARD_ERRORS * standard_error(self.by_micro - single.by_micro, self.units)
        return surely and gain + change > 0.0 and change >= -slack * single.micro - harm


def choice_name(slack: float) -> str:
    """Return the key in `Choice.compared` for thresholds per label that can lower micro-F by the share ``slack``."""
    return f"per genre, slack {slack:g}"


def _named(calibration: Calibration, thresholds: Thresholds, logits: FloatArray) -> BoolArray:
    return np.asarray(sigmoid(calibration(logits)) >= thresholds.values)


class CrossFit:
    """Choose calibration and thresholds on (N, G) targets and logits. The order of the samples has no effect.

    groups (N,): equal numbers for near-duplicates, which stay in one fold. None if there are no near-duplicates.
    Raises UserError for an unknown aim.
    """

    def __init__(
        self, truth: BoolArray, logits: FloatArray, decide: DecideConfig | None = None, groups: IntArray | None = None
    ) -> None:
        self.decide = decide or DecideConfig()
        self.aim = parse_aim(self.decide.aim)
        self.order, self.units = in_order(truth, logits, groups)
        self.truth, self.scores = truth[self.order], logits[self.order]
        self.fold = assign_folds(self.truth, self.units)
        self._made: dict[tuple[Any, ...], Any] = {}

    def named(self) -> BoolArray:
        """Return (N, G) predicted labels in the original order. The choice for fold k is made without fold k."""
        result = np.empty_like(self.truth)
        result[self.order] = self._held_out(EVERYONE, lambda k: self.choose(frozenset({k})).named)
        return result

    def choose(self, out: Out = EVERYONE) -> Choice:
        """Choose on all samples that are not in the folds ``out``."""
        rows = self._rows(out)
        if not rows.any():  # the split has one sample
            plain = fit_calibration(self.truth, self.scores, "none")
            halves = np.full(self.truth.shape[1], DEFAULT_THRESHOLD)
            return Choice(plain, Thresholds(halves, DEFAULT_THRESHOLD), None, {}, {})
        calibration, calibrations = choose_calibration(
            self.truth[rows],
            self.scores[rows],
            self.decide.calibration,
            self.fold[rows],
            self.units[rows],
            lambda k, method: self._calibration(out if k is None else out | {k}, method),
        )
        slack, compared = self._choose_slack(out, calibration.method)
        return Choice(calibration, self._thresholds(out, calibration.method, slack), slack, calibrations, compared)

    def _choose_slack(self, out: Out, method: Method) -> tuple[float | None, dict[str, Any]]:
        """Return `Choice.slack` and `Choice.compared`.

        If decide.thresholds is "auto" and the aim is f1 or f0.5, thresholds per label are compared with a single
        threshold on held-out samples. Thresholds per label are chosen if all these rules hold:
        - Macro-F rises by more than `CLEAR_STANDARD_ERRORS` standard errors.
        - Macro-F rises by more than micro-F falls.
        - Micro-F falls by at most the slack plus `HARMLESS_STANDARD_ERRORS` standard errors.
        The slack decide.max_micro_f_loss is tried first, then 0. For all other aims, "auto" means thresholds per label.
        """
        wanted, beta = self.decide.thresholds, self.aim.value
        if wanted == "global":
            return None, {}
        if wanted == "genre" or self.aim.kind != "f":
            return self.decide.max_micro_f_loss, {}
        rows = self._rows(out)
        truth, units = self.truth[rows], self.units[rows]
        if not enough(units):
            return None, {}

        def measured(slack: float | None) -> HeldOut:
            def namer(k: int) -> Callable[[FloatArray], BoolArray]:
                without = out | {k}
                return partial(_named, self._calibration(without, method), self._thresholds(without, method, slack))

            return HeldOut.of(truth, self._held_out(out, namer)[rows], units, beta)

        single, compared = measured(None), {}
        compared[SINGLE] = {"micro_f": single.micro, "macro_f": single.macro}
        for slack in sorted({0.0, self.decide.max_micro_f_loss}, reverse=True):
            found = measured(slack)
            compared[choice_name(slack)] = {"micro_f": found.micro, "macro_f": found.macro}
            if found.clearly_better(single, slack):
                return slack, compared
        return None, compared

    def _held_out(self, out: Out, namer: Callable[[int], Callable[[FloatArray], BoolArray]]) -> BoolArray:
        """Predict (N, G) labels, all False in the folds of ``out``. ``namer(k)`` returns the function for fold k."""
        named = np.zeros_like(self.truth)
        for k in sorted(set(self.fold.tolist()) - out):
            named[self.fold == k] = namer(k)(self.scores[self.fold == k])
        return named

    def _rows(self, out: Out) -> BoolArray:
        return ~np.isin(self.fold, sorted(out))

    def _calibration(self, out: Out, method: Method) -> Calibration:
        rows = self._rows(out)
        return self._once((out, method), lambda: fit_calibration(self.truth[rows], self.scores[rows], method))

    def _thresholds(self, out: Out, method: Method, slack: float | None) -> Thresholds:
        return self._once((out, method, slack), lambda: self._fit_thresholds(out, method, slack))

    def _fit_thresholds(self, out: Out, method: Method, slack: float | None) -> Thresholds:
        rows = self._rows(out)
        truth, scores = self.truth[rows], self.scores[rows]
        probabilities = self._once((out, method, "p"), lambda: sigmoid(self._calibration(out, method)(scores)))
        if slack is None:
            single = single_threshold(self.aim, truth, probabilities)
            return Thresholds(np.full(truth.shape[1], single), single)
        single = self._thresholds(out, method, None).single
        expected = sigmoid(self._calibration(out, "platt")(scores))
        values, weight = thresholds_per_label(self.aim, truth, probabilities, expected, single, slack)
        return Thresholds(values, single, weight)

    def _once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
