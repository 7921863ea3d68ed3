"""What do the last three updates of an epoch do to a settled ResNet50? Full ones and what is left, or all of one size.

    posters shards build --images ../shared/posters/images --metadata ../shared/posters/meta_processed.csv \
        --out SHARDS --splits 0.85,0.1,0.05
    python tests/bench/last_update.py --shards SHARDS --weights ../shared/weights/resnet50_imagenet_fp16.safetensors

3,203 real posters, so that an epoch at batch 64 leaves 3 over; the reference recipe, but at 64 pixels and a tenth of
its rate. The network settles over the first updates of an epoch. From there both rules make the last three updates,
several times with other samples. After each the validation loss of 256 posters is taken, and how far it moved their
evaluation features: the norm of the difference, divided by that of the features.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from shards.dataset.manifest import Manifest
from toolkit.config.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from toolkit.data.sampling.plan import Sizes, TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.models.heads import logits_and_features
from toolkit.training.setup import TrainingSetup, build_setup
from toolkit.training.train_step import TrainStep

SAMPLES, BATCH, LAST, JUDGES = 3203, 64, 3, 256
RULES: dict[Sizes, str] = {"tail": "full ones, then what is left", "even": "all of one size"}


def settings(weights: Path, pixels: int) -> Config:
    return Config(
        data=DataConfig(image_size=pixels),
        model=ModelConfig(weights=str(weights)),
        optim=OptimConfig(lr=0.00015),
        train=TrainConfig(batch_size=BATCH, precision="no", trackers={}),
    )


def updates(accelerator: Accelerator, setup: TrainingSetup, plan: TrainPlan, epoch: int, first: int, count: int) -> Any:
    """Make ``count`` updates of ``epoch`` from update ``first`` on; yields the samples of each."""
    setup = replace(setup, plan=plan)
    train_step, lr = TrainStep(setup), setup.config.optim.lr
    with contextlib.closing(setup.inputs.feed(setup)) as feed:
        with contextlib.closing(feed.batches(epoch, first)) as batches:
            for step in range(first, first + count):
                setup.freezing.training_mode(setup.model, 0)
                train_step(batches, epoch, step, step + 1, lr)
                yield plan.count(step)


def judged(setup: TrainingSetup, images: torch.Tensor, targets: torch.Tensor) -> tuple[float, torch.Tensor]:
    """(validation loss, features (n, F)) of the judges."""
    setup.model.eval()
    with torch.inference_mode():
        pairs = [logits_and_features(setup.model, part) for part in images.split(64)]
    logits, features = (torch.cat(part) for part in zip(*pairs, strict=True))
    return float(F.binary_cross_entropy_with_logits(logits, targets)), features


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for option in ("--shards", "--weights"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--settle", type=int, default=30, help="updates before the last three")
    parser.add_argument("--repeats", type=int, default=5, help="times that the last three are made")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    with tempfile.TemporaryDirectory() as name:
        manifest = Manifest.read(arguments.shards)
        readers = [ShardReader.of_split(arguments.shards, split, manifest) for split in ("train", "val")]
        config = settings(arguments.weights, arguments.pixels)
        setup = build_setup(accelerator, config, manifest, readers, Path(name), None)
        order = GlobalOrder(SAMPLES, 0)
        plans = {rule: TrainPlan(order, BATCH, sizes=rule) for rule in RULES}
        images, targets = judges(setup)
        for _ in updates(accelerator, setup, plans["even"], 0, 0, arguments.settle):
            pass
        settled = copy.deepcopy(setup.model.state_dict()), copy.deepcopy(setup.optimizer.state_dict())
        start, features = judged(setup, images, targets)
        print(f"validation loss after {arguments.settle} updates: {start:.4f}")
        rows: dict[str, list[dict[str, Any]]] = {rule: [] for rule in RULES}
        for repeat in range(arguments.repeats):
            for rule, plan in plans.items():
                setup.model.load_state_dict(settled[0])
                setup.optimizer.load_state_dict(copy.deepcopy(settled[1]))
                before = features
                row: dict[str, Any] = {"samples": [], "loss": [], "moved": []}
                first = plan.steps_per_epoch - LAST
                for count in updates(accelerator, setup, plan, repeat, first, LAST):
                    loss, after = judged(setup, images, targets)
                    row["samples"].append(count)
                    row["loss"].append(loss)
                    row["moved"].append(float((after - before).norm() / before.norm()))
                    before = after
                rows[rule].append(row)
                print(rule, row["samples"], np.round(row["loss"], 4), np.round(row["moved"], 3), flush=True)
    print(f"\n| updates | validation loss before, then after each of the last {LAST} | features moved by |")
    print("| --- | --- | --- |")
    for rule, title in RULES.items():
        losses, moves = (np.array([row[key] for row in rows[rule]]) for key in ("loss", "moved"))
        shown = ", ".join(f"{value:.4f}" for value in [start, *losses.mean(axis=0)])
        far = ", ".join(f"{value:.1%}" for value in moves.mean(axis=0))
        print(f"| {title}: {rows[rule][0]['samples']} samples | {shown} (last: {losses[:, -1].min():.4f} to "
              f"{losses[:, -1].max():.4f}) | {far} (last: at most {moves[:, -1].max():.1%}) |")  # fmt: skip
    if arguments.json:
        setting = {"pixels": arguments.pixels, "settle": arguments.settle, "samples": SAMPLES, "batch": BATCH}
        content = {"setting": setting, "torch": torch.__version__, "start": start, "rules": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def judges(setup: TrainingSetup) -> tuple[torch.Tensor, torch.Tensor]:
    """(normalised images, targets) of JUDGES validation samples."""
    from toolkit.data.loader.loader import Loader
    from toolkit.data.sampling.plan import EvalPlan
    from toolkit.data.transforms.batch_transform import eval_transforms

    device = torch.device("cpu")
    transforms = eval_transforms(setup.val, setup.preprocessing, "cpu", device)
    with Loader(setup.val, 2, 2) as loader:
        micro_batches = EvalPlan(min(JUDGES, len(setup.val)), 64).micro_batches(0, 1)
        images = [setup.preprocessing.normalize(b.images).clone() for b in loader.batches(micro_batches, transforms)]
    return torch.cat(images), torch.from_numpy(setup.val.targets[: min(JUDGES, len(setup.val))]).float()


if __name__ == "__main__":
    sys.exit(main())
