"""What each part of a recipe is worth: the same posters, backbone and budget, one recipe after the other.

    python tests/bench/study.py --metadata CSV --images DIR --weights FILE --out study [--splits N] [--only NAME ...]

Builds the shards (one set per split seed), takes the backbone's features once, trains each recipe's head on them,
chooses calibration and thresholds on validation and measures on test. Writes study/study.md, study.json and, for the
first split, study/report (the best recipe beside the reference). Every recipe is a YAML of configs/ with the overrides
named below; each interval is a bootstrap over test samples, averaged splits are shown where there are several.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shards.build import BuildOptions, build_shards  # noqa: E402
from shards.errors import UserError  # noqa: E402
from shards.files import write_json  # noqa: E402
from shards.manifest import Manifest  # noqa: E402
from toolkit.baselines import commonest_genres  # noqa: E402
from toolkit.bootstrap import Draws, bootstrap, confidence_intervals, paired_difference  # noqa: E402
from toolkit.cli import main as posters  # noqa: E402
from toolkit.cli import set_up_logging  # noqa: E402
from toolkit.config_cli import parse_train  # noqa: E402
from toolkit.distributed import make_accelerator  # noqa: E402
from toolkit.model_folder import load_model_folder  # noqa: E402
from toolkit.split_logits import SplitLogits, infer_split  # noqa: E402
from toolkit.train import train  # noqa: E402
from toolkit.validation import train_prevalence  # noqa: E402
from toolkit.weighted_metrics import Answers  # noqa: E402

log = logging.getLogger(__name__)

METRICS = {
    "mAP": "mAP",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "macro_f0.5": "macro-F0.5",
    "ece": "ECE",
}


@dataclass(frozen=True)
class Recipe:
    """One row of the table."""

    name: str
    config: str
    """File in configs/."""
    overrides: tuple[str, ...] = ()


def recipes() -> list[Recipe]:
    """The reference, then one change at a time, then everything that helped."""
    # The reference recipe's own head, loss, optimiser and stopping; its backbone does not learn here, as nobody's does.
    cached = ("--model.freeze=[backbone]", "--train.feature_views=1")
    reference = (*cached, "--decide.thresholds=global", "--decide.calibration=none")
    probe = "linear_probe.yaml"
    return [
        Recipe("reference", "poster_resnet50.yaml", reference),
        Recipe("reference, decisions per genre", "poster_resnet50.yaml", cached),
        Recipe("linear probe", probe),
        Recipe("probe, weighted BCE", probe, ("--loss.name=weighted",)),
        Recipe("probe, focal", probe, ("--loss.name=focal",)),
        Recipe("probe, asymmetric", probe, ("--loss.name=asl",)),
        Recipe("probe, distribution-balanced", probe, ("--loss.name=balanced",)),
        Recipe("probe, label smoothing 0.1", probe, ("--loss.smoothing=0.1",)),
        Recipe("probe, genre-aware sampling", probe, ("--data.sampling=genre",)),
        Recipe("probe, central crop", probe, ("--data.fit=crop",)),
        Recipe("probe, one view", probe, ("--train.feature_views=1",)),
        Recipe("probe, decay 1 instead of 30", probe, ("--optim.weight_decay=1",)),
        Recipe("probe, no moving average", probe, ("--train.ema=0",)),
        Recipe("best", "poster_resnet50_best.yaml"),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status."""
    args = parse(argv)
    set_up_logging()
    try:
        return study(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def study(args: argparse.Namespace) -> int:
    """Every split, every recipe; then the table and the page."""
    chosen = [r for r in recipes() if not args.only or r.name in args.only]
    rows: dict[str, list[dict[str, Any]]] = {recipe.name: [] for recipe in chosen}
    for seed in range(args.splits):
        for name, row in one_split(args, seed, chosen).items():
            rows.setdefault(name, []).append(row)
    write_json(args.out / "study.json", {"posters": str(args.images.name), "rows": rows})
    write_report(args)
    text = table(rows) + "\n" + against_reference(rows)
    (args.out / "study.md").write_text(text)
    print(text)
    return 0


def write_report(args: argparse.Namespace) -> None:
    """The page of the first split's best recipe, beside the reference, where both were run."""
    folder = args.out / "split-0"
    best, reference = folder / "best", folder / "reference"
    if best.exists() and reference.exists():
        posters(
            [
                "evaluate",
                f"--model={best / 'model'}",
                f"--compare={reference}",
                f"--shards={folder / 'shards'}",
                f"--precision={args.precision}",
                f"--report={args.out / 'report'}",
            ]
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metadata", type=Path, required=True, help="CSV of genre lists")
    parser.add_argument("--images", type=Path, required=True, help="folder of posters")
    parser.add_argument("--weights", type=Path, required=True, help="backbone weights, timm's names")
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder for all it makes")
    parser.add_argument("--splits", type=int, default=1, help="split seeds to run (default 1)")
    parser.add_argument("--only", nargs="+", help="recipes to run, by name")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="bf16", help="of the backbone")
    parser.add_argument("--override", nargs="+", default=[], help="options for every recipe: KEY=VALUE")
    return parser.parse_args(argv)


def one_split(args: argparse.Namespace, seed: int, chosen: list[Recipe]) -> dict[str, dict[str, Any]]:
    """Every recipe on the split of ``seed``: figures with intervals, and differences to the reference."""
    folder = args.out / f"split-{seed}"
    manifest = build_shards(
        BuildOptions(metadata=args.metadata, images=args.images, out=folder / "shards", seed=seed)
    )
    answers: dict[str, Answers] = {}
    outputs: SplitLogits | None = None
    for recipe in chosen:
        model = run_recipe(args, recipe, folder)
        accelerator = make_accelerator(args.precision)
        loaded = load_model_folder(model)
        outputs = infer_split(accelerator, loaded, folder / "shards", manifest, "test")
        decisions = loaded.decisions
        answers[recipe.name] = Answers(
            decisions.named(outputs.logits), decisions.probabilities(outputs.logits)
        )
    assert outputs is not None
    answers.update(baseline_answers(manifest, outputs))
    draws = bootstrap(outputs.targets, answers)
    reference = draws.get("reference")
    return {name: figures(drawn, reference) for name, drawn in draws.items()}


def run_recipe(args: argparse.Namespace, recipe: Recipe, folder: Path) -> Path:
    """Train unless it was trained; returns the model folder."""
    run = folder / recipe.name.replace(",", "").replace(" ", "-")
    config = parse_train(
        [
            f"--config={ROOT / 'configs' / recipe.config}",
            f"--model.weights={args.weights}",
            f"--train.feature_cache={folder / 'features'}",
            f"--train.precision={args.precision}",
            "--train.tensorboard=false",
            *recipe.overrides,
            *(f"--{option}" for option in args.override),
            f"--shards={folder / 'shards'}",
            f"--out={run}",
        ]
    ).config
    log.info("recipe %s", recipe.name)
    status = train(config, folder / "shards", run, resume=True)
    if status:
        raise SystemExit(status)
    return run / "model"


def baseline_answers(manifest: Manifest, outputs: SplitLogits) -> dict[str, Answers]:
    """Baselines that see no poster: prevalence, and always the k commonest genres."""
    prevalence = train_prevalence(manifest)
    shape = outputs.targets.shape
    answers = {
        "prevalence": Answers(np.broadcast_to(prevalence >= 0.5, shape), np.broadcast_to(prevalence, shape))
    }
    for k in (1, 2, 3):
        named = np.zeros(shape, dtype=bool)
        named[:, commonest_genres(prevalence, k)] = True
        answers[f"always top-{k}"] = Answers(named)
    return answers


def figures(drawn: Draws, reference: Draws | None) -> dict[str, Any]:
    """Metric -> value, interval, and the paired difference to the reference."""
    intervals = confidence_intervals(drawn)
    differences = paired_difference(drawn, reference) if reference is not None else {}
    return {
        metric: {
            "value": intervals[metric].value,
            "low": intervals[metric].low,
            "high": intervals[metric].high,
            "difference": list(differences[metric][:3]) if metric in differences else None,
        }
        for metric in METRICS
        if metric in intervals
    }


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: one row per recipe, value and interval (of one split) or mean over splits and range."""
    head = "| recipe | " + " | ".join(METRICS.values()) + " |"
    lines = [head, "| --- |" + " --- |" * len(METRICS)]
    for name, splits in rows.items():
        cells = [cell([split.get(metric) for split in splits]) for metric in METRICS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against_reference(rows: dict[str, list[dict[str, Any]]]) -> str:
    """One line per recipe: its figures divided by the reference's, means over splits."""

    def mean(name: str, metric: str) -> float:
        return float(np.mean([split[metric]["value"] for split in rows[name]]))

    lines = []
    for name, splits in rows.items():
        if "reference" in rows and name != "reference" and set(METRICS) <= set(splits[0]):
            parts = [
                f"{title} x {mean(name, key) / mean('reference', key):.2f}" for key, title in METRICS.items()
            ]
            lines.append(f"- {name} / reference: {', '.join(parts)}")
    return "\n".join(lines) + "\n"


def cell(found: list[dict[str, Any] | None]) -> str:
    """``0.231 (0.210 to 0.255)``; over several splits the mean of values and of interval ends."""
    known = [one for one in found if one is not None and one["value"] is not None]
    if not known:
        return "-"
    value, low, high = (float(np.mean([one[key] for one in known])) for key in ("value", "low", "high"))
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
