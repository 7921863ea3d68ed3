"""timm's multi-label training reads the tars of `posters shards build`: its reader, loader, task and evaluator.

timm's wheel has no train.py. `train_epoch` and `evaluate` do what train.py does with these parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from foreign_tars import adopt, pack
from sklearn.metrics import average_precision_score
from timm.data import MultiLabelTarget, create_dataset, create_loader
from timm.task import MultiLabelClassificationTask

from shards.dataset.manifest import Manifest
from toolkit.data.sources.shard_set import ShardSet

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, BATCH = 32, 8


def timm_batches(shards: Path, split: str, num_classes: int, training: bool, **targets: Any) -> Any:
    """Batches of timm's loader: (n, 3, S, S) images and (n, G) targets."""
    targets = targets or {
        "target_key": "multi_hot",
        "target_format": "multihot",
        "target_transform": MultiLabelTarget(num_classes, dense=True),
    }
    dataset = create_dataset("wds/", root=str(shards), split=split, is_training=training, batch_size=BATCH, **targets)
    return create_loader(
        dataset, (3, SIZE, SIZE), BATCH, is_training=training, no_aug=True, num_workers=0, use_prefetcher=False,
        persistent_workers=False, device=torch.device("cpu"),
    )  # fmt: skip


def train_epoch(task: MultiLabelClassificationTask, batches: Iterable[Any], optimizer: torch.optim.Optimizer) -> float:
    """Return the mean loss."""
    task.train()
    losses = []
    for images, targets in batches:
        loss = task(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.inference_mode()
def evaluate(task: MultiLabelClassificationTask, batches: Iterable[Any]) -> tuple[dict[str, float], Any]:
    """Return the metrics of timm's evaluator, and the evaluator with its outputs and targets."""
    task.eval()
    evaluator, model = task.create_evaluator(), task.get_eval_model()
    assert model is not None
    for images, targets in batches:
        evaluator.update(model(images), targets)
    return evaluator.compute(), evaluator


@pytest.mark.long
def test_timm_trains_on_our_tars(shard_set: Path) -> None:
    genres = Manifest.read(shard_set).genres
    torch.manual_seed(0)
    task = MultiLabelClassificationTask(timm.create_model("test_resnet", num_classes=len(genres)))
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.003)
    train = timm_batches(shard_set, "train", len(genres), training=True)
    seen = timm_batches(shard_set, "train", len(genres), training=False)
    before = evaluate(task, seen)[0]
    losses = []
    for epoch in range(12):
        train.dataset.set_epoch(epoch)
        losses.append(train_epoch(task, train, optimizer))
    after = evaluate(task, seen)[0]
    assert losses[-1] < 0.7 * losses[0]
    assert after["map"] > before["map"] + 20, (before, after)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_timm_reads_every_sample_and_its_genres(shard_set: Path, split: str) -> None:
    genres = Manifest.read(shard_set).genres
    task = MultiLabelClassificationTask(timm.create_model("test_resnet", num_classes=len(genres)))
    metrics, evaluator = evaluate(task, timm_batches(shard_set, split, len(genres), training=False))
    targets = torch.cat(evaluator.targets).numpy()
    assert np.array_equal(targets, ShardSet(shard_set, split).targets)
    # timm's mAP counts a genre without positives as 0. Ours leaves it out.
    logits, known = torch.cat(evaluator.outputs).numpy(), targets.any(axis=0)
    precisions = average_precision_score(targets[:, known], logits[:, known], average=None)
    assert metrics["map"] == pytest.approx(100 * precisions.sum() / len(genres), abs=1e-3)


def test_timm_reads_tars_of_other_tools_that_were_indexed(tmp_path: Path) -> None:
    """Their JSONs have names of genres, which timm maps to numbers."""
    wanted = {"a": ["War"], "b": ["Drama", "War"], "c": ["Comedy"], "d": ["Drama"]}
    pack(tmp_path / "train-0.tar", "a b", **{name: {"genres": wanted[name]} for name in "ab"})
    pack(tmp_path / "train-1.tar", "c d", **{name: {"genres": wanted[name]} for name in "cd"})
    labels = adopt(tmp_path).labels
    names = {"target_key": "genres", "class_map": dict(labels.index), "target_transform": MultiLabelTarget(len(labels))}
    (batch,) = timm_batches(tmp_path, "train", len(labels), training=False, **names)
    assert [[labels.genres[column] for column in row.nonzero().ravel()] for row in batch[1]] == list(wanted.values())
