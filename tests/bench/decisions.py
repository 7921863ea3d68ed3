"""Are chosen decisions worth their fit? A model's logits, split again and again into validation and new samples.

    posters evaluate -m RUN/model -s SHARDS --split val      posters evaluate -m RUN/model -s SHARDS
    python tests/bench/decisions.py RUN/model/predictions-val.npz RUN/model/predictions-test.npz [--val N] [--splits N]

Each way of decide.thresholds, with calibration auto, is chosen on N samples drawn from the files and measured on the
others, beside the best single threshold of the same N, uncalibrated. Shown are means over the splits, with the standard
error of the difference over splits (which share samples: it is too small, by more the fewer samples there are), and how
often decisions were per genre and calibrated. Neither file may be of samples that the model was trained on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from toolkit.config.schema import DecideConfig  # noqa: E402
from toolkit.decisions.cross_fit import CrossFit  # noqa: E402
from toolkit.decisions.decisions import Decisions, choose_decisions  # noqa: E402
from toolkit.metrics.calibration_error import reliability  # noqa: E402
from toolkit.metrics.helpers import check_arrays  # noqa: E402
from toolkit.metrics.registry import values  # noqa: E402
from toolkit.metrics.weighted import Outcome  # noqa: E402

WAYS = {
    "single": DecideConfig("global", calibration="none"),
    "auto": DecideConfig("auto"),
    "genre": DecideConfig("genre"),
    "global": DecideConfig("global"),
}
FIGURES = ("micro-F1", "macro-F1", "ECE")


def main(argv: list[str] | None = None) -> int:
    """Read, measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="predictions-SPLIT.npz of one model")
    parser.add_argument("--val", type=int, default=0, help="samples to choose on (default: half of all)")
    parser.add_argument("--splits", type=int, default=40, help="random splits (default 40)")
    args = parser.parse_args(argv)
    targets, logits = read(args.files)
    chosen_on = args.val or len(targets) // 2
    if not 0 < chosen_on < len(targets):
        parser.error(f"--val must leave some of the {len(targets)} samples")
    rows: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    held_out: list[list[float]] = []
    for split in range(args.splits):
        order = np.random.default_rng(split).permutation(len(targets))
        old, new = order[:chosen_on], order[chosen_on:]
        for way, decide in WAYS.items():
            decisions = choose_decisions(targets[old], logits[old], decide)
            rows[way].append(measured(targets[new], logits[new], decisions))
        named = CrossFit(targets[old], logits[old]).named()
        cross = values(Outcome(targets[old], named), "decisions")
        held_out.append([cross["micro_f1"], cross["macro_f1"]])
    show(rows, held_out, chosen_on, len(targets))
    return 0


def read(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(N, G) targets and logits of all files."""
    found = [np.load(path, allow_pickle=False) for path in files]
    return check_arrays(np.concatenate([f["targets"] for f in found]), np.concatenate([f["logits"] for f in found]))


def measured(targets: np.ndarray, logits: np.ndarray, decisions: Decisions) -> list[float]:
    """FIGURES, then whether decisions are per genre and calibrated."""
    found = values(Outcome(targets, decisions.named(logits)), "decisions")
    ece = reliability(targets, decisions.probabilities(logits))["ece"]
    return [
        found["micro_f1"],
        found["macro_f1"],
        ece,
        float(decisions.per_label),
        float(decisions.calibration != "none"),
    ]


def show(rows: dict[str, list[list[float]]], held_out: list[list[float]], chosen_on: int, samples: int) -> None:
    """A table in Markdown."""
    print(f"{len(held_out)} splits: chosen on {chosen_on} samples, measured on {samples - chosen_on}\n")
    print("| thresholds | " + " | ".join(FIGURES) + " | per genre | calibrated |")
    print("| --- |" + " --- |" * 5)
    single = np.array(rows["single"])
    for way, found in rows.items():
        values = np.array(found)
        cells = [f"{value:.3f}" for value in values.mean(axis=0)[:3]]
        if way != "single":
            change = (values - single)[:, :3]
            error = change.std(axis=0, ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.full(3, np.nan)
            both = zip(cells, change.mean(axis=0), error, strict=True)
            cells = [f"{cell} ({by:+.4f} ± {e:.4f})" for cell, by, e in both]
        print(f"| {way} | " + " | ".join([*cells, *(f"{share:.0%}" for share in values.mean(axis=0)[3:])]) + " |")
    micro, macro = np.mean(held_out, axis=0)
    print(
        f"\ncross-fit figures of auto, from the {chosen_on} samples alone: micro-F1 {micro:.3f}, macro-F1 {macro:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
