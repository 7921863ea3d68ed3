"""timm's side of timm_multilabel.py, in a process of its own: what timm's train.py --task multilabel does.

timm's wheel has no train.py. The same parts are called in the script's order: reader of WebDataset tars, loader with
prefetcher, task, optimiser and schedule, evaluator, saver of checkpoints.

    python timm_train.py train SETTINGS.json                    an epoch for each line on stdin
    python timm_train.py ids SETTINGS.json RANK WORLD FOLDER    which samples a rank is handed, FOLDER/ids-RANK.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from timm import utils
from timm.data import MultiLabelTarget, create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import MultiLabelClassificationTask

CPU = torch.device("cpu")


def loader_of(settings: argparse.Namespace, split: str, training: bool, **changes: Any) -> Any:
    """train.py's loader of a split: (n, 3, S, S) images and (n, G) targets."""
    options = {
        "input_size": (3, settings.size, settings.size), "batch_size": settings.batch, "is_training": training,
        "scale": settings.crop_scale, "ratio": settings.crop_ratio, "hflip": settings.flip, "color_jitter": 0.0,
        "interpolation": "bilinear", "crop_pct": settings.crop_pct, "mean": settings.mean, "std": settings.std,
        "num_workers": settings.workers, "device": CPU,
    } | changes  # fmt: skip
    target = {"target_key": "id"} if "distributed" in changes else {
        "target_key": "multi_hot", "target_format": "multihot",
        "target_transform": MultiLabelTarget(settings.num_classes, dense=True),
    }  # fmt: skip
    dataset = create_dataset(
        "wds/", root=settings.shards, split=split, is_training=training, batch_size=options["batch_size"],
        seed=settings.seed, **target,
    )  # fmt: skip
    return create_loader(dataset, **options)


class Training:
    """The parts of train.py, and its epochs."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings = settings
        utils.random_seed(settings.seed, 0)
        model = timm.create_model(settings.model, num_classes=settings.num_classes)
        model.load_state_dict(load_file(settings.weights), strict=True)
        model.to(memory_format=torch.channels_last)
        self.task = MultiLabelClassificationTask(model, criterion_kwargs={"bce_sum": True}, verbose=False)
        self.train, self.val = loader_of(settings, "train", True), loader_of(settings, "val", False)
        self.optimizer = create_optimizer_v2(model, settings.opt, lr=settings.lr, weight_decay=settings.weight_decay)
        self.schedule, _ = create_scheduler_v2(
            self.optimizer, "cosine", num_epochs=settings.epochs, warmup_epochs=0, min_lr=0.0, step_on_epochs=False,
            updates_per_epoch=len(self.train),
        )  # fmt: skip
        args = argparse.Namespace(task="multilabel", img_size=settings.size, interpolation="bilinear", **vars(settings))
        self.saver = utils.CheckpointSaver(
            model, self.optimizer, args, checkpoint_dir=settings.out, recovery_dir=settings.out, task=self.task
        )
        self.epoch, self.updates = 0, 0

    def run_epoch(self) -> dict[str, Any]:
        """Train, validate, save. Return the speed of the updates and the metrics on validation."""
        self.task.train()
        self.train.dataset.set_epoch(self.epoch)
        images, loss_sum, began = 0, 0.0, time.perf_counter()
        for image, target in self.train:
            loss = self.task(image.contiguous(memory_format=torch.channels_last), target)["loss"]
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
            self.schedule.step_update(self.updates)
            images, loss_sum = images + len(image), loss_sum + loss.item() * len(image)
        seconds = time.perf_counter() - began
        metrics = self.evaluate(self.val)
        self.saver.save_checkpoint(self.epoch, metric=metrics["map"])
        self.epoch += 1
        return {"images": images, "seconds": seconds, "train_loss": loss_sum / images, "val": metrics}

    @torch.inference_mode()
    def evaluate(self, loader: Any) -> dict[str, float]:
        """Return the metrics of timm's evaluator, in percent."""
        self.task.eval()
        evaluator, model = self.task.create_evaluator(), self.task.get_eval_model()
        assert model is not None
        for image, target in loader:
            evaluator.update(model(image.contiguous(memory_format=torch.channels_last)), target)
        return dict(evaluator.compute())


def train(settings: argparse.Namespace) -> None:
    """Answer each line on stdin with an epoch: a JSON line on stdout."""
    training = Training(settings)
    print(json.dumps({"updates": len(training.train)}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(training.run_epoch()), flush=True)


def ids(settings: argparse.Namespace, rank: int, world: int, folder: Path) -> None:
    """Write the ids of the samples of one epoch of training and of validation, as lists of batches."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=world)
    found = {}
    for split, training in (("train", True), ("val", False)):
        loader = loader_of(
            settings, split, training, input_size=(3, 16, 16), batch_size=settings.batch // world, no_aug=True,
            use_prefetcher=False, distributed=world > 1,
            # train.py: at most two processes per rank read a validation split of tars
            num_workers=settings.workers if training or world == 1 else min(2, settings.workers),
        )  # fmt: skip
        found[split] = [batch.tolist() for _, batch in loader]
    (folder / f"ids-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    given = argparse.Namespace(**json.loads(Path(sys.argv[2]).read_text()))
    if sys.argv[1] == "train":
        train(given)
    else:
        ids(given, int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
