"""Networks and checkpoints as timm's users have them, made by timm."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from timm.task import MultiLabelClassificationTask
from timm.utils import CheckpointSaver

NAMES = ("Comedy", "Drama", "War")


def network(name: str = "test_resnet", classes: int = len(NAMES), seed: int = 0, **options: Any) -> Any:
    """A network of timm, in evaluation mode, whose statistics and logits are no trivial ones."""
    torch.manual_seed(seed)
    made: Any = timm.create_model(name, num_classes=classes, **options)
    size = made.pretrained_cfg["input_size"][1] if "img_size" not in options else options["img_size"]
    made.train()(torch.randn(4, 3, size, size))
    return made.eval()


def classes_file(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    return folder / "classes.txt"


def train_checkpoint(folder: Path, made: Any, ema: Any = None, **options: Any) -> Path:
    """What timm's train.py saves, by timm's own saver."""
    args = argparse.Namespace(
        **{
            "model": "test_resnet", "num_classes": len(NAMES), "in_chans": None, "img_size": None, "input_size": None,
            "mean": None, "std": None, "crop_pct": None, "interpolation": "", "gp": None, "bn_eps": None, "lr": 0.1,
            "model_kwargs": {}, "task": "multilabel", "opt_betas": [0.9, 0.99], "device": "cpu", **options,
        }
    )  # fmt: skip
    optimizer = torch.optim.AdamW(made.parameters())
    task = MultiLabelClassificationTask(made, verbose=False)
    if ema is not None:
        averages: Any = task.setup_ema()
        averages.module.load_state_dict(ema.state_dict())
    saver = CheckpointSaver(made, optimizer, args, checkpoint_dir=str(folder), recovery_dir=str(folder), task=task)
    saver.save_checkpoint(4, metric=0.5)
    return folder / "model_best.pth.tar"
