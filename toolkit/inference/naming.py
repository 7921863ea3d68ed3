"""Decide which genres a prediction names: the options and the rule."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shards.options import option
from shards.values import Checked, FromZeroToOne
from toolkit.metrics.helpers import BoolArray, FloatArray


@dataclass(frozen=True, kw_only=True)
class NamingOptions(Checked):
    """Options that decide which genres a prediction names. A new option needs a field and a rule in ``named()``."""

    threshold: FromZeroToOne | None = option(None, "-t")
    """Name genres with at least this calibrated probability (default: the model's own threshold per genre)."""

    def thresholds(self, own: FloatArray) -> FloatArray:
        """Return (G,) thresholds: ``threshold`` for all genres if this option is given, else the model's thresholds."""
        return own if self.threshold is None else np.full(len(own), self.threshold)

    def named(self, probabilities: FloatArray, thresholds: FloatArray) -> BoolArray:
        """Return (..., G) bool: which genres are named. Takes (..., G) calibrated probabilities and (G,) thresholds."""
        return probabilities >= thresholds  # False for NaN

    def facts(self) -> dict[str, Any]:
        """Return the changed options, which prediction files record. ``threshold`` is never included."""
        pairs = {name: (value, getattr(self, name)) for name, value in asdict(NamingOptions()).items()}
        return {name: now for name, (plain, now) in pairs.items() if name != "threshold" and now != plain}


#: The default options. The app and the demo use them.
PLAIN = NamingOptions()
