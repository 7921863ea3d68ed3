"""The first screen of an audit: the result in plain words with intervals, and one sentence of advice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shards.visuals.templates import hundred
from toolkit.audit.effects import (
    COVERAGE,
    FEW_POSTERS,
    LARGEST,
    ROUNDS,
    STRONGER,
    WEAKER,
    Effect,
    Ratio,
    amount,
    is_noise,
    posters,
    times,
)

#: If the interval of the ratio reaches this number, titles can matter clearly more than other areas.
CAN_MATTER = 1.5
#: Kind of picture → what the tile says about its share of posters, and how the picture was made.
CHANGED = {
    "text": ("Painting over titles changes the genres of {} of 100 posters", "if the text is painted over"),
    "control": ("The same area elsewhere changes the genres of {}", "if the same area elsewhere is painted over"),
    "reencoding": ("JPEG alone changes the genres of {}", "if the poster is only saved again as JPEG"),
}


def overview(ratio: Ratio, effects: Mapping[str, Effect], seed: int) -> dict[str, Any]:
    """Return the tiles, and the advice with ``words`` and a ``command`` that can be empty.

    ``effects`` has the effects on the compared posters. There are no tiles if no poster could be compared.
    """
    tiles = []
    if ratio.posters:
        flips = [_flips(kind, effects[kind].any_flip, seed) for kind in CHANGED]
        tiles = [_ratio_tile(ratio), *flips]
    noise = effects["reencoding"].means()["probability"]
    words, command = advice(ratio, noise or 0.0)
    return {"tiles": tiles, "advice": {"words": words, "command": command}}


def _ratio_tile(ratio: Ratio) -> dict[str, Any]:
    means = (
        f"Mean change of a probability: {amount(ratio.text or 0.0)} if the text is painted over, "
        f"{amount(ratio.control or 0.0)} if the same area elsewhere is painted over."
    )
    words = {
        STRONGER: f"Titles move predictions {times(ratio.value or 0.0)} times as much as the same area elsewhere",
        WEAKER: "Titles move predictions less than the same area elsewhere",
    }.get(ratio.word, "No difference seen between titles and the same area elsewhere")
    if ratio.value is None:
        return _tile("ratio", "Titles do not move predictions", None, None, None, means)
    if ratio.posters < FEW_POSTERS or ratio.low is None or ratio.high is None:
        return _tile("ratio", words, None, None, None, f"{means} {posters(ratio.posters)}: too few for a result.")
    parts = (_part(ratio.value), _part(ratio.low), _part(ratio.high))
    explanation = (
        f"{means} Ratio {times(ratio.value)}, {COVERAGE:.0%} interval {ratio.interval}. The bar is the part of titles "
        "in the sum of both changes: in the middle, both are equal."
    )
    return _tile("ratio", words, *parts, explanation)


def _part(ratio: float) -> float:
    """Return a / (a + b) for a ratio a / b, which can be infinite."""
    return 1.0 - 1.0 / (1.0 + ratio)


def _flips(kind: str, flips: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the tile with the share of posters of which at least one genre changed. ``flips``: (n,) shares."""
    value, (words, how) = float(flips.mean()), CHANGED[kind]
    low, high = mean_interval(flips, seed)
    shown = f"{value:.3f}" + ("" if low is None else f", {COVERAGE:.0%} interval {low:.3f} to {high:.3f}")
    meaning = f"Share of posters for which at least one genre is newly named or no longer named {how}: {shown}."
    return _tile(kind, words.format(hundred(value)), value, low, high, meaning)


def mean_interval(values: np.ndarray, seed: int) -> tuple[float, float] | tuple[None, None]:
    """Return the bootstrap interval of the mean. Both ends are None if all values are equal, which shows no spread."""
    if np.ptp(values) == 0.0:
        return None, None
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(ROUNDS)]
    tail = (1.0 - COVERAGE) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def _tile(
    key: str, words: str, value: float | None, low: float | None, high: float | None, explanation: str
) -> dict[str, Any]:
    return {"key": key, "words": words, "value": value, "low": low, "high": high, "explanation": explanation}


def advice(ratio: Ratio, noise: float) -> tuple[str, str]:
    """Return a sentence that the ratio supports, and a command that can be empty. ``noise``: effect of JPEG alone."""
    no_need = "no need to train the model on posters without text"
    if not ratio.posters:
        return "Check the posters and the cleaned posters: none could be compared", ""
    if ratio.value is None:
        return f"Titles change nothing that this model says: {no_need}", ""
    if ratio.posters < FEW_POSTERS:
        return f"Audit at least {FEW_POSTERS} posters with text: {ratio.posters} are too few for a result", ""
    if is_noise(ratio.text or 0.0, noise):
        return f"Titles hardly change more than saving the poster again as JPEG: {no_need}", ""
    if ratio.word == STRONGER:
        least = times(min(ratio.low or 0.0, float(LARGEST)))
        return (
            f"The model uses titles (at least {least} times as much as other areas): if it must judge the picture "
            "alone, train it on posters without text",
            "posters shards build --text-removal",
        )
    if ratio.high is not None and ratio.high >= CAN_MATTER:
        most = f"titles can still matter {times(ratio.high)} times as much as other areas"
        return f"Audit more posters: {most} (upper end of the interval)", ""
    most = f"at most {times(ratio.high or 0.0)} times as much as other areas"
    return f"Titles matter {most} (upper end of the interval): {no_need}", ""
