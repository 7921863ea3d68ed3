"""Figures of the loader benchmark: rates, ratios of the same round, and the table that people read."""

from __future__ import annotations

from statistics import median
from typing import Any

#: Our columns, and what they are called in "ratios".
OURS = {"device": "ours_device", "cpu": "ours_cpu"}
#: The public class, and the same engine and normalisation as `posters train` had them before the class.
PUBLIC, ENGINE = "ours_float", "ours_engine"
#: What they are compared with.
PEERS = (
    "decode_only",
    "webdataset_float",
    "webdataset_uint8",
    "timm",
    "torchvision_image",
    "torchvision_jpeg",
    "torchcodec",
    "spdl",
    "litdata",
    "mosaic_streaming",
    "dali_cpu",
    "ffcv_jpeg",
    "ffcv_raw",
)
HEADLINE = "short256"

Rounds = list[dict[str, Any]]


def rate(epoch: dict[str, Any]) -> float:
    """Images a second of one epoch."""
    return epoch["images"] / epoch["seconds"]


def summary(rounds: Rounds, cores: int) -> dict[str, Any]:
    """Medians over the rounds of one stack."""
    rates = [rate(epoch) for epoch in rounds]
    middle = median(rates)
    return {
        "images_per_second": round(middle, 1),
        "images_per_second_per_core": round(middle / cores, 1),
        "cpu_seconds_per_1000": round(median(1000 * e["cpu_seconds"] / e["images"] for e in rounds), 3),
        "first_batch_seconds": round(median(e["first_batch"] for e in rounds), 4),
        "spread_percent": round(100 * (max(rates) - min(rates)) / middle, 1),
        "images_per_epoch": rounds[-1]["images"] // rounds[-1]["epochs"],
        "batch_shape": rounds[-1].get("shape", []),
        "batch_dtype": rounds[-1].get("dtype", ""),
    }


def ratios(rounds: dict[str, Rounds], ours: str, peers: tuple[str, ...] = PEERS) -> dict[str, float | None]:
    """Ours divided by each peer: the median of the ratios within a round, in which the machine was the same."""
    found: dict[str, float | None] = {}
    for peer in peers:
        pairs = list(zip(rounds.get(ours, []), rounds.get(peer, []), strict=False))
        found[peer] = round(median(rate(mine) / rate(theirs) for mine, theirs in pairs), 3) if pairs else None
    return found


def all_ratios(rounds: dict[str, Rounds]) -> dict[str, dict[str, float | None]]:
    """The ratios of both of our columns, and of the public class to the engine alone."""
    found = {column: ratios(rounds, stack) for column, stack in OURS.items()}
    return {**found, "public class": ratios(rounds, PUBLIC, (ENGINE,))}


COLUMNS = ("stack", "images/s", "a core", "CPU-s/1000", "memory MB", "first batch ms", "spread", "work")


def table(result: dict[str, Any]) -> str:
    """The table of one data set."""
    rows = [COLUMNS]
    for name, stack in result["stacks"].items():
        if "reason" in stack:
            rows.append((name, *["-"] * 6, stack["reason"][:70]))
            continue
        rows.append(
            (
                name,
                f"{stack['images_per_second']:.0f}",
                f"{stack['images_per_second_per_core']:.0f}",
                f"{stack['cpu_seconds_per_1000']:.2f}",
                f"{stack['peak_memory_mb']:.0f}",
                f"{1000 * stack['first_batch_seconds']:.0f}",
                f"{stack['spread_percent']:.0f}%",
                stack["work"],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, len(COLUMNS) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def ratio_lines(result: dict[str, Any]) -> str:
    """Our columns over the peers', in a line each."""
    lines = []
    for column, values in result["ratios"].items():
        known = [f"{peer} {value:.2f}" for peer, value in values.items() if value is not None]
        if known:
            lines.append(f"ours ({column}) / peer: {', '.join(known)}")
    return "\n".join(lines)
