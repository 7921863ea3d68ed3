"""What the figures of gpu_check.py should be, and what they are. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: What a training must reach of a resident batch, a prediction of its limit, and a prediction of timm's speed.
OF_RESIDENT, OF_LIMIT, OF_TIMM = 0.97, 0.90, 2.0
Figures = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A figure of the summary."""

    figure: str
    value: float | int | bool | None
    goal: float | int | bool | None = None
    """Smallest value that meets the goal. None if there is no goal."""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one, or without a value."""
        return None if self.goal is None or self.value is None else self.value >= self.goal


def tests(figures: Figures) -> Iterator[Found]:
    for step in figures.values():
        yield Found("GPU tests passed", step["passed"])
        yield Found("GPU tests skipped", step["skipped"])


def training(figures: Figures) -> Iterator[Found]:
    for name, step in figures.items():
        for side in step["sides"].values():
            for threads, row in side["by_threads"].items():
                default = row is next(iter(side["by_threads"].values()))
                words = f"training ÷ resident, {name}, {threads} threads"
                yield Found(words + " (default)" * default, row["ratio"], OF_RESIDENT if default else None)
            yield Found(f"training, {name}, images/s", side["ours"])
            yield Found(f"timm's loader ÷ resident, {name}", side["timm_ratio"])


def prediction(figures: Figures) -> Iterator[Found]:
    for name, step in figures.items():
        ratios = step["ratios"].get("ours_shards", {})
        limits = [ratios[limit] for limit in ("forward", "decode") if limit in ratios]
        # The smaller limit is the one that ours comes nearest to.
        yield Found(f"prediction ÷ min(forward, decoding), {name}", max(limits, default=None), OF_LIMIT)
        yield Found(f"prediction ÷ timm, {name}", ratios.get("timm"), OF_TIMM)
        for stack, speed in step["images_per_second"].items():
            yield Found(f"{stack}, {name}, images/s", speed)
        # The main thread's largest parts: where a batch waits.
        for part, share in list(step.get("profile", {}).get("threads", {}).get("MainThread", {}).items())[:6]:
            yield Found(f"share of {part}"[:60], share)


def study(figures: Figures) -> Iterator[Found]:
    rows = list(figures.values())[-1]["rows"] if figures else {}
    best = rows.get("best", [{}])[0].get("mAP", {}).get("value")
    for name, splits in rows.items():
        if "mAP" in splits[0]:
            yield Found(f"mAP of {name}", splits[0]["mAP"]["value"], best if "fine-tuned" in name else None)


def crews(figures: Figures) -> Iterator[Found]:
    for step in figures.values():
        for sets in step["sets"].values():
            for crew, speed in sets["device"].items():
                yield Found(f"forward pass fed by {crew}, images/s", speed)


def precisions(figures: Figures) -> Iterator[Found]:
    for name, step in figures.items():
        if "sides" in step:
            for side in step["sides"].values():
                yield Found(f"{name}: ÷ resident", side["ratio"])
                yield Found(f"{name}: images/s", side["ours"])
        else:
            for stack, speed in step["images_per_second"].items():
                yield Found(f"{name}: {stack}, images/s", speed)


def text(figures: Figures) -> Iterator[Found]:
    for step in figures.values():
        for name, row in step["ways"].items():
            yield Found(f"seconds a poster, {name}", row["seconds"])


def processes(figures: Figures) -> Iterator[Found]:
    for name, step in figures.items():
        yield Found(f"{name}: same samples in each update", step["same_samples_in_each_update"], True)
        yield Found(f"{name}: same rows predicted", step["same_rows"], True)
        yield Found(f"{name}: largest difference of a probability", step["largest_difference_of_a_probability"])


FOUND: dict[str, Callable[[Figures], Iterator[Found]]] = {
    "tests": tests,
    "train": training,
    "predict": prediction,
    "study": study,
    "crews": crews,
    "precision": precisions,
    "text": text,
    "processes": processes,
}


def verdict(found: Found, judged: bool) -> str:
    """``goal met``, ``goal MISSED``, or nothing. On a CPU and at tiny sizes no goal is judged."""
    if found.goal is None:
        return ""
    if not judged:
        return "not judged"
    return {True: "met", False: "MISSED", None: "no figure"}[found.met]


def shown(value: float | int | bool | None) -> str:
    """A number for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"
