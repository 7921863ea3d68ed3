"""timm's multi-label training and `posters train`, on the same tars, from the same weights, with the same options.

    python tests/bench/timm_multilabel.py --metadata CSV --images DIR --weights FILE --out timm [--posters N] [--json F]

Both train all weights of one backbone with the same crops, flips, loss, optimiser, schedule, batch and number of
epochs. Epochs alternate, so both have the same machine: a ratio is the median over epochs of images/s, without
validation. timm's best checkpoint comes in through `posters import` and gets thresholds by `posters tune`. Then our
evaluator measures both models on the same test split, and `posters evaluate --compare` says which differences are real.
timm's own evaluator measures both, too. Which samples an epoch hands out is counted with 1 and 2 ranks. Prints a
Markdown table. timm_train.py is timm's side.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from timm.task import MultiLabelClassificationTask  # noqa: E402

from shards.build.run import BuildOptions, build_shards  # noqa: E402
from shards.build.split import parse_splits  # noqa: E402
from shards.cli.log_options import set_up_logging  # noqa: E402
from shards.dataset.manifest import Manifest  # noqa: E402
from shards.errors import UserError  # noqa: E402
from shards.inputs.images import ImageOptions  # noqa: E402
from shards.storage.endings import is_image_name  # noqa: E402
from shards.storage.files import write_json  # noqa: E402
from shards.tables.metadata import read_metadata  # noqa: E402
from toolkit.cli.main import main as posters  # noqa: E402
from toolkit.config.schema import DataConfig  # noqa: E402
from toolkit.data.sampling.plan import EvalPlan, TrainPlan  # noqa: E402
from toolkit.data.sampling.shuffle import GlobalOrder  # noqa: E402
from toolkit.device.defaults import own_cores  # noqa: E402
from toolkit.models.heads import head_prefixes  # noqa: E402
from toolkit.training import run as training  # noqa: E402
from toolkit.training.checkpoints.weights import read_weights  # noqa: E402
from toolkit.training.trainer import Trainer  # noqa: E402

from timm_table import METRICS, markdown  # noqa: E402 # isort: skip

OPTIMISER, WEIGHT_DECAY = "adamw", 0.01
WORLDS = (1, 2)


def main() -> int:
    """Run the comparison; returns the exit status."""
    options = parse()
    set_up_logging()
    try:
        if options.epochs < 1 or options.batch < 2 or options.posters < 20 or not 0 < options.lr < 1:
            raise UserError("option-value", "--posters must be 20 or more, --batch 2, --epochs 1, and --lr below 1")
        if not timm.is_model(options.model):
            raise UserError("option-value", f"--model: timm has no model {options.model!r}")
        result = compare(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(result))
    if options.json:
        write_json(options.json, result)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata", type=Path, required=True, help="table of genres")
    parser.add_argument("--images", type=Path, required=True, help="folder of posters")
    parser.add_argument("--weights", type=Path, help="backbone weights in timm's names (default: random weights)")
    parser.add_argument("--out", type=Path, required=True, help="new folder for all that is made")
    parser.add_argument("--posters", type=int, default=400, help="number of posters, drawn from the table")
    parser.add_argument("--splits", default="0.5,0.15,0.35", help="shares of train, val and test")
    parser.add_argument("--samples-per-shard", type=int, default=50, help="timm deals whole tars to its processes")
    parser.add_argument("--model", default="resnet50", help="any timm architecture")
    parser.add_argument("--size", type=int, default=96, help="side of the input in pixels")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.0005)
    parser.add_argument("--workers", type=int, default=own_cores(), help="timm's processes and our threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Make the set and the start weights, train both, and measure both."""
    out: Path = options.out
    if out.exists():
        raise UserError("path-exists", f"--out {out} exists: choose another folder")
    manifest = make_set(options)
    settings = settings_of(options, manifest)
    speed = train_both(options, settings)
    shards = ["--shards", f"{out / 'shards'}"]
    run("import", "--checkpoint", out / "timm" / "model_best.pth.tar", "--classes", out / "shards" / "manifest.json",
        "--out", out / "imported")  # fmt: skip
    run("tune", "--model", out / "imported", *shards, "--precision", "no")
    models = {"timm": out / "imported", "ours": out / "ours" / "model"}
    for model in models.values():
        run("evaluate", "--model", model, *shards, "--precision", "no")
    report = ["--report", out / "report", "--no-label-errors"]
    run("evaluate", "--model", models["ours"], "--compare", models["timm"], *shards, "--precision", "no", *report)
    compared = json.loads((out / "report" / "metrics.json").read_text())["comparisons"]
    (rows,) = [found["rows"] for found in compared if found["kind"] == "run"]
    test = manifest.split_summary()["test"]
    return {
        "versions": {name: version(name) for name in ("timm", "torch", "webdataset")},
        "setting": {
            **{name: getattr(options, name) for name in ("model", "size", "epochs", "batch", "lr", "workers", "seed")},
            "samples": {split: found["samples"] for split, found in manifest.split_summary().items()},
            "genres": len(manifest.genres),
            "genres_without_test_poster": sum(not count for count in test["genre_counts"].values()),
        },
        "speed": speed,
        "samples": {str(world): samples_of(options, manifest, settings, world) for world in WORLDS},
        "comparison": {row["metric"]: row for row in rows if row["metric"] in METRICS},
        "by_timms_evaluator": {name: by_timm(model) for name, model in models.items()},
    }


def run(*words: object) -> None:
    """Run a command of `posters`."""
    if status := posters([str(word) for word in words]):
        raise SystemExit(status)


def make_set(options: argparse.Namespace) -> Manifest:
    """OUT/shards, of posters with numbers as ids: timm's reader can hand out a number in place of the genres."""
    out: Path = options.out
    rows = sorted(read_metadata(options.metadata, images=options.images).rows, key=lambda row: row.id)
    files = {path.stem: path for path in options.images.rglob("*") if is_image_name(path.name)}
    rows = [row for row in rows if row.id in files]
    if len(rows) < options.posters:
        raise UserError("option-value", f"--posters {options.posters}: only {len(rows)} rows have an image")
    (out / "posters").mkdir(parents=True)
    with open(out / "metadata.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "genre"])
        for number, row in enumerate(random.Random(options.seed).sample(rows, options.posters)):
            path = files[row.id]
            shutil.copyfile(path, out / "posters" / f"{number:06d}{path.suffix.lower()}")
            table.writerow([f"{number:06d}", str(list(row.genres))])
    return build_shards(
        BuildOptions(
            metadata=out / "metadata.csv",
            images=out / "posters",
            out=out / "shards",
            fractions=parse_splits(options.splits),
            samples_per_shard=options.samples_per_shard,
            image=ImageOptions(),
            seed=options.seed,
            workers=1,
        )
    )


def settings_of(options: argparse.Namespace, manifest: Manifest) -> dict[str, Any]:
    """The settings of both trainings, with the file of the start weights, which this function writes."""
    out: Path = options.out
    torch.manual_seed(options.seed)
    model: Any = timm.create_model(options.model, num_classes=len(manifest.genres))
    if options.weights is not None:
        head = head_prefixes(model)
        found = {k: v.float() for k, v in read_weights(options.weights).items() if not k.startswith(head)}
        own = {k: v for k, v in model.state_dict().items() if k.startswith(head) or k.endswith("num_batches_tracked")}
        model.load_state_dict({**own, **found}, strict=True)
    save_file(model.state_dict(), out / "start.safetensors")
    data, cfg = DataConfig(), model.pretrained_cfg
    settings = {
        "shards": str(out / "shards"), "out": str(out / "timm"), "model": options.model,
        "num_classes": len(manifest.genres), "weights": str(out / "start.safetensors"), "size": options.size,
        "epochs": options.epochs, "batch": options.batch, "opt": OPTIMISER, "lr": options.lr,
        "weight_decay": WEIGHT_DECAY, "workers": options.workers, "seed": options.seed,
        "crop_scale": list(data.crop_scale), "crop_ratio": list(data.crop_ratio), "flip": data.flip,
        "crop_pct": data.crop_pct, "mean": list(cfg["mean"]), "std": list(cfg["std"]),
    }  # fmt: skip
    (out / "timm").mkdir()
    (out / "timm.json").write_text(json.dumps(settings))
    return settings


def train_both(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Run `posters train`; after each of its epochs, timm's process makes one. Return images/s of each epoch."""
    out: Path = options.out
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    command = [sys.executable, str(Path(__file__).with_name("timm_train.py")), "train", str(out / "timm.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdin is not None and peer.stdout is not None
        stdin, stdout = peer.stdin, peer.stdout
        updates = _answer(stdout.readline())["updates"]

        class Alternating(Trainer):
            def _validate(self, row: dict[str, Any]) -> None:
                super()._validate(row)
                ours.append({"images": self.plan.num_samples, "seconds": row["seconds"]})
                stdin.write("go\n")
                stdin.flush()
                theirs.append(_answer(stdout.readline()))

        before = training.Trainer
        training.Trainer = Alternating  # type: ignore[misc]
        try:
            run(
                "train", "--shards", out / "shards", "--out", out / "ours", "--model.name", options.model,
                "--model.weights", settings["weights"], "--model.pretrained", "false", "--model.head", "linear",
                "--model.dropout", 0, "--model.freeze", "[]", "--data.image_size", options.size,
                "--data.workers", options.workers, "--optim.name", OPTIMISER, "--optim.lr", options.lr,
                "--optim.weight_decay", WEIGHT_DECAY, "--optim.schedule", "cosine", "--train.epochs", options.epochs,
                "--train.batch_size", options.batch, "--train.monitor", "mAP", "--train.patience", 0,
                "--train.precision", "no", "--train.trackers", "{}", "--train.seed", options.seed,
            )  # fmt: skip
        finally:
            training.Trainer = before  # type: ignore[misc]
            stdin.close()
    rates = [[epoch["images"] / epoch["seconds"] for epoch in epochs] for epochs in (ours, theirs)]
    return {
        "ours": rates[0],
        "timm": rates[1],
        "ratio": median(mine / other for mine, other in zip(*rates, strict=True)),
        "updates_per_epoch": {"ours": -(-ours[0]["images"] // options.batch), "timm": updates},
        "timm_val": [epoch["val"] for epoch in theirs],
    }


def _answer(line: str) -> dict[str, Any]:
    if not line:
        raise SystemExit("timm's process ended; its messages are above")
    found: dict[str, Any] = json.loads(line)
    return found


def samples_of(
    options: argparse.Namespace, manifest: Manifest, settings: dict[str, Any], world: int
) -> dict[str, dict[str, dict[str, int]]]:
    """Split → side → how many samples one epoch with ``world`` ranks hands out, misses and repeats."""
    sizes = {split: found["samples"] for split, found in manifest.split_summary().items()}
    with tempfile.TemporaryDirectory() as name:
        command = [
            sys.executable,
            str(Path(__file__).with_name("timm_train.py")),
            "ids",
            str(options.out / "timm.json"),
        ]
        ranks = [subprocess.Popen([*command, str(rank), str(world), name]) for rank in range(world)]
        if any(rank.wait() for rank in ranks):
            raise SystemExit("timm's process ended; its messages are above")
        handed = [json.loads((Path(name) / f"ids-{rank}.json").read_text()) for rank in range(world)]
    found: dict[str, dict[str, dict[str, int]]] = {}
    for split in ("train", "val"):
        theirs = Counter(sample for rank in handed for batch in rank[split] for sample in batch)
        found[split] = {"ours": counts_of(our_samples(split, sizes[split], options, world), sizes[split])}
        found[split]["timm"] = counts_of(theirs, sizes[split])
    return found


def our_samples(split: str, samples: int, options: argparse.Namespace, world: int) -> Counter[int]:
    """The positions that the plans of the trainer hand out (tests watch the trainer itself)."""
    plan = TrainPlan(GlobalOrder(samples, options.seed), options.batch) if split == "train" else None
    found: Counter[int] = Counter()
    for rank in range(world):
        steps = plan.rest_of_epoch(0, rank, world) if plan else EvalPlan(samples, 32).micro_batches(rank, world)
        for step in steps:
            found.update(step.indices[step.valid].tolist())
    return found


def counts_of(handed: Counter[int], samples: int) -> dict[str, int]:
    return {"handed_out": handed.total(), "missed": samples - len(handed), "repeated": handed.total() - len(handed)}


def by_timm(model: Path) -> dict[str, float]:
    """The metrics of timm's evaluator on the test split, at its threshold of 0.5, as shares."""
    with np.load(model / "predictions-test.npz") as outputs:
        logits, targets = torch.from_numpy(outputs["logits"]), torch.from_numpy(outputs["targets"]).float()
    evaluator = MultiLabelClassificationTask(torch.nn.Identity(), verbose=False).create_evaluator()
    evaluator.update(logits, targets)
    found = evaluator.compute()
    return {name: found[key] / 100 for name, key in zip(METRICS, ("map", "macro_f1", "micro_f1"), strict=True)}


if __name__ == "__main__":
    sys.exit(main())
