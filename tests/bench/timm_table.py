"""The table of timm_multilabel.py."""

from __future__ import annotations

from statistics import median
from typing import Any

#: Metrics of the comparison. The first three are in timm's evaluator as well.
METRICS = ("mAP", "macro_f1", "micro_f1")


def markdown(result: dict[str, Any]) -> str:
    """The table."""
    setting, speed, counts = result["setting"], result["speed"], result["samples"]
    samples, versions = setting["samples"], result["versions"]
    rows: list[tuple[str, ...]] = [("", "timm", "posters train", "difference")]
    rates = [median(speed[side]) for side in ("timm", "ours")]
    rows.append(("images/s, median of the epochs", *(f"{rate:.1f}" for rate in rates), f"x {speed['ratio']:.2f}"))
    for world, splits in counts.items():
        for split, sides in splits.items():
            words = [
                f"{side['handed_out']}: {side['missed']} missed, {side['repeated']} repeated"
                for side in (sides["timm"], sides["ours"])
            ]
            rows.append((f"{split}, {samples[split]} samples, {world} rank{'s' * (world != '1')}", *words, ""))
    for row in result["comparison"].values():
        span = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}): {row['words']}"
        rows.append((f"{row['name']}, our evaluator", f"{row['theirs']:.3f}", f"{row['mine']:.3f}", span))
    both = result["by_timms_evaluator"]
    for metric in METRICS:
        name = result["comparison"][metric]["name"]
        values = [both[side][metric] for side in ("timm", "ours")]
        rows.append(
            (f"{name}, timm's evaluator", *(f"{value:.3f}" for value in values), f"{values[1] - values[0]:+.3f}")
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "| --- | --- | --- | --- |")
    about = (
        f"{setting['model']} at {setting['size']} pixels, {setting['epochs']} epochs, batch {setting['batch']}, "
        f"{samples['train']} / {samples['val']} / {samples['test']} posters, {setting['genres']} genres "
        f"({setting['genres_without_test_poster']} without a test poster), {setting['workers']} workers; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
    )
    return "\n".join([*lines, "", about])
