"""What each part of a recipe is worth: the same posters, backbone and budget, one recipe after the other.

    python tests/bench/study.py --metadata CSV --images DIR --weights FILE --out study [--splits N] [--only NAME ...]

Builds the shards (one set per split seed), trains each recipe (study_recipes.py), chooses calibration and thresholds on
validation and measures on test. Writes study/study.md, study.json and, for the first split, study/comparison (the page
of `posters compare`). Each interval is a bootstrap over test samples, near-duplicates together; where there are
several splits, means are shown. A recipe that was trained is not trained again; one that was changed is another.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shards.build.run import BuildOptions, build_shards  # noqa: E402
from shards.cli.log_options import set_up_logging  # noqa: E402
from shards.dataset.manifest import Manifest  # noqa: E402
from shards.errors import UserError  # noqa: E402
from shards.storage.files import fingerprint, write_json  # noqa: E402
from shards.tables.metadata import GenreOptions  # noqa: E402
from toolkit.cli.commands import read  # noqa: E402
from toolkit.cli.main import main as posters  # noqa: E402
from toolkit.comparison.options import FEWEST, MOST  # noqa: E402
from toolkit.config.io import config_dict  # noqa: E402
from toolkit.distributed.collectives import make_accelerator  # noqa: E402
from toolkit.evaluation.results import train_prevalence  # noqa: E402
from toolkit.inference.split_outputs import SplitLogits, infer_split  # noqa: E402
from toolkit.metrics.baselines import always_top_k  # noqa: E402
from toolkit.metrics.bootstrap import bootstrap  # noqa: E402
from toolkit.metrics.weighted import Outcome  # noqa: E402
from toolkit.model_folder.folder import load_model_folder  # noqa: E402
from toolkit.training.run import train  # noqa: E402

from study_recipes import Recipe, recipes  # noqa: E402 # isort: skip
from study_tables import Row, against_reference, figures, table  # noqa: E402 # isort: skip

log = logging.getLogger(__name__)


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
    chosen = choose(args)
    rows: dict[str, list[Row]] = {recipe.name: [] for recipe in chosen}
    for seed in range(args.splits):
        found, models = one_split(args, seed, chosen)
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
        if seed == 0:
            write_comparison(args, found, models)
    write_json(args.out / "study.json", {"posters": str(args.images.name), "rows": rows})
    text = table(rows) + "\n" + against_reference(rows)
    (args.out / "study.md").write_text(text)
    print(text)
    return 0


def choose(args: argparse.Namespace) -> list[Recipe]:
    """The recipes asked for. Raises UserError."""
    if args.splits < 1:
        raise UserError("option-value", f"--splits must be at least 1, not {args.splits}")
    known = recipes(args.fine_tune)
    if unknown := [name for name in args.only or () if name not in {recipe.name for recipe in known}]:
        raise UserError(
            "option-value", f"no recipe {unknown[0]!r}; there are: {'; '.join(recipe.name for recipe in known)}"
        )
    names = set(args.only or [recipe.name for recipe in known])
    names |= {recipe.start for recipe in known if recipe.name in names}
    return [recipe for recipe in known if recipe.name in names]


def write_comparison(args: argparse.Namespace, rows: dict[str, Row], models: dict[str, Path]) -> None:
    """The page of the first split: the reference, where it was run, then the recipes with the highest mAP."""
    names = sorted(models, key=lambda name: (name != "reference", -(rows[name]["mAP"]["value"] or 0.0)))[:MOST]
    if len(names) < FEWEST:
        return
    posters(
        [
            "compare",
            *(str(models[name]) for name in names),
            f"--shards={args.out / 'split-0' / 'shards'}",
            f"--precision={args.precision}",
            f"--out={args.out / 'comparison'}",
        ]
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata", type=Path, required=True, help="CSV of genre lists")
    parser.add_argument("--images", type=Path, required=True, help="folder of posters")
    parser.add_argument("--weights", type=Path, required=True, help="backbone weights, timm's names")
    parser.add_argument("--out", type=Path, default=Path("study"), help="folder for all it makes")
    parser.add_argument("--splits", type=int, default=1, help="split seeds to run (default 1)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes to run, by name")
    parser.add_argument(
        "--fine-tune", action="store_true", help="also recipes whose backbone learns, at 224 pixels: for a GPU"
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="bf16", help="of the backbone")
    parser.add_argument("--override", nargs="+", default=[], help="options for every recipe: KEY=VALUE")
    for field in fields(GenreOptions):
        name = field.name.replace("_", "-")
        parser.add_argument(f"--{name}", default=field.default, help="as of `posters shards build`")
    return parser.parse_args(argv)


def one_split(args: argparse.Namespace, seed: int, chosen: list[Recipe]) -> tuple[dict[str, Row], dict[str, Path]]:
    """(figures of every recipe and baseline on the split of ``seed``, model folder of every recipe)."""
    folder = args.out / f"split-{seed}"
    manifest = build_shards(
        BuildOptions(
            metadata=args.metadata,
            images=args.images,
            out=folder / "shards",
            **{field.name: getattr(args, field.name) for field in fields(GenreOptions)},
            seed=seed,
        )
    )
    answers: dict[str, Outcome] = {}
    models: dict[str, Path] = {}
    outputs: SplitLogits | None = None
    for recipe in chosen:
        models[recipe.name] = run_recipe(args, recipe, folder, models.get(recipe.start, args.weights))
        accelerator = make_accelerator(args.precision)
        loaded = load_model_folder(models[recipe.name])
        outputs = infer_split(accelerator, loaded, folder / "shards", manifest, "test")
        decisions = loaded.decisions
        answers[recipe.name] = Outcome(
            outputs.targets, decisions.named(outputs.logits), decisions.probabilities(outputs.logits)
        )
    assert outputs is not None
    answers.update(baseline_answers(manifest, outputs))
    draws = bootstrap(answers, units=manifest.units_of("test"))
    reference = draws.get("reference")
    rows = {name: figures(drawn, answers[name], reference) for name, drawn in draws.items()}
    return rows, models


def run_recipe(args: argparse.Namespace, recipe: Recipe, folder: Path, weights: Path) -> Path:
    """Train from ``weights`` unless it was trained; returns the model folder. A changed recipe has another folder."""
    config = read(
        [
            "train",
            f"--config={ROOT / 'configs' / recipe.config}",
            f"--model.weights={weights}",
            f"--train.feature_cache={folder / 'features'}",
            f"--train.precision={args.precision}",
            "--train.trackers={}",
            *recipe.overrides,
            *(f"--{option}" for option in args.override),
            f"--shards={folder / 'shards'}",
            f"--out={folder}",
        ]
    )[1].config
    made_of = fingerprint(config_dict(config))[:8]
    run = folder / f"{recipe.name.replace(',', '').replace(' ', '-')}-{made_of}"
    log.info("recipe %s", recipe.name)
    status = train(config, folder / "shards", run, resume=True)
    if status:
        raise SystemExit(status)
    return run / "model"


def baseline_answers(manifest: Manifest, outputs: SplitLogits) -> dict[str, Outcome]:
    """Baselines that see no poster: prevalence, and always the k commonest genres."""
    prevalence, truth = train_prevalence(manifest), outputs.targets
    constant = np.broadcast_to(prevalence, truth.shape)
    answers = {"prevalence": Outcome(truth, constant >= 0.5, constant)}
    for k in (1, 2, 3):
        answers[f"always top-{k}"] = Outcome(truth, always_top_k(truth.shape, prevalence, k))
    return answers


if __name__ == "__main__":
    sys.exit(main())
