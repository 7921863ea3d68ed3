"""Files of features: a node has one copy, whatever folder each rank has; a rank that cannot read ends all of them."""

from __future__ import annotations

import contextlib
import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from forked import forkserver
from toolkit_helpers import weights_option

from toolkit.config.schema import Config, TrainConfig
from toolkit.data.sampling.plan import TrainPlan
from toolkit.data.sampling.shuffle import GlobalOrder
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec
from toolkit.training.cached.feature_files import FeatureWriter, read_features
from toolkit.training.cached.probe import FeatureFeed, build_head

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "faults"))

from fault_tools import ended, train_options

#: Of each view, 50 MB in float32.
SAMPLES, WIDTH, VIEWS = 1 << 16, 192, 4


class Samples:
    """As much of a split, and of its plan, as a feed of features needs."""

    shard_sizes = (SAMPLES,)
    plan = TrainPlan(GlobalOrder(SAMPLES, 0), 512)

    def __len__(self) -> int:
        return SAMPLES

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plan, name)


def write_view(path: Path, count: int, width: int, seed: int) -> None:
    rng, writer = np.random.default_rng(seed), FeatureWriter(path, count)
    with writer:
        for start in range(0, count, 5000):
            rows = rng.normal(2.0, 3.0, (min(5000, count - start), width + 1)).astype(np.float32)
            rows[:, -1] = rng.random(len(rows)) < 0.9
            writer.add(rows)


def test_what_is_written_in_parts_is_read_as_one(tmp_path: Path) -> None:
    write_view(tmp_path / "a.npy", 12_000, 3, 5)
    found = read_features(tmp_path / "a.npy", 12_000)
    assert found.values.shape == (12_000, 3) and 0.85 < found.decoded.mean() < 0.95
    together = np.concatenate(list(found.blocks()))
    assert (together == found.values[found.decoded]).all()
    whole = np.load(tmp_path / "a.npy")
    assert (whole[:, :-1] == found.values).all() and ((whole[:, -1] == 1) == found.decoded).all()


def own_memory() -> float:
    """MiB that no other process shares."""
    return float(psutil.Process().memory_full_info().uss) / 2**20


def be_a_rank(folder: str, ready: object, grown: object) -> None:
    """Map all views, standardise, and train through two epochs' batches."""
    accelerator = Accelerator(cpu=True)
    model = build_model("test_resnet", 4, HeadSpec("linear", (), 0.0), 32)
    model.fc = torch.nn.Linear(WIDTH, 4)
    before = own_memory()
    views = [read_features(Path(folder) / f"{view}.npy", SAMPLES) for view in range(VIEWS)]
    build_head(model, views, True, 0.0)
    config = Config(train=TrainConfig(batch_size=512))
    feed = FeatureFeed(config.train, Samples(), views, views[0], accelerator)  # type: ignore[arg-type]
    for epoch in range(2):
        for _ in feed.batches(epoch, 0):
            pass
    ready.wait(60)  # type: ignore[attr-defined]
    grown.put(own_memory() - before)  # type: ignore[attr-defined]
    ready.wait(60)  # type: ignore[attr-defined]


def test_a_process_has_no_copy_of_its_own(tmp_path: Path) -> None:
    """Both have read 200 MB, which lie in the page cache once."""
    for view in range(VIEWS):
        write_view(tmp_path / f"{view}.npy", SAMPLES, WIDTH, view)
    size = sum(path.stat().st_size for path in tmp_path.iterdir()) / 2**20
    context = forkserver()
    ready, grown = context.Barrier(2), context.Queue()
    processes = [context.Process(target=be_a_rank, args=(str(tmp_path), ready, grown)) for _ in range(2)]
    for process in processes:
        process.start()
    found: list[float] = []
    while len(found) < 2 and not any(process.exitcode for process in processes):
        with contextlib.suppress(queue.Empty):
            found.append(grown.get(timeout=0.2))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert size > 180 and max(found) < size / 4, (size, found)


PROBE = [
    "--model.freeze=[backbone]",
    weights_option(),
    "--model.head=linear",
    "--train.feature_views=2",
    "--train.eval_batch_size=4",
]


@pytest.mark.parametrize("folder", ["features", "features-{rank}"])
def test_every_rank_has_the_file_whatever_its_folder_is(folder: str, drawn_set: Path, tmp_path: Path) -> None:
    """Nodes may have folders of their own: the first process's file is copied to them, and computed once."""
    cache = tmp_path / folder
    options = train_options(drawn_set, tmp_path / "run", *PROBE, f"--train.feature_cache={cache}")
    run = ended(options, tmp_path / "said", 2)
    assert run.statuses == [0, 0], run.said
    folders = sorted(tmp_path.glob("features*"))
    assert len(folders) == (2 if "{rank}" in folder else 1)
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert len(files[0]) == 3 and all(other == files[0] for other in files)
    again = ended([*options, "--resume", "--train.epochs=2"], tmp_path / "again", 2)
    assert again.statuses == [0, 0] and "features of" not in again.said[0]


def test_a_rank_that_cannot_read_a_shard_ends_all(drawn_set: Path, tmp_path: Path) -> None:
    options = train_options(drawn_set, tmp_path / "run", *PROBE)
    stopped = ended(options, tmp_path / "said", 2, "read EIO 1 0 always train-00001.tar")
    assert stopped.statuses == [69, 69], stopped.said
    assert all("rank 1: shard " in line and "Input/output error" in line for line in stopped.errors)
    assert not list((tmp_path / "run" / "features").iterdir())
    resumed = ended([*options, "--resume"], tmp_path / "resumed", 2)
    assert resumed.statuses == [0, 0], resumed.said
