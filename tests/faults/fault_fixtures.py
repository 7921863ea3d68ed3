"""Fixtures of the tests of faults; a test module that wants them says ``pytest_plugins = ("fault_fixtures",)``.

Their names are their own: fixtures of such modules are known to all tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fault_tools import Disk, ended, train_options
from shared_tools import small_file_system
from toolkit_helpers import make_model_folder

from shards.dataset.manifest import Manifest
from toolkit.models.heads import HeadSpec


@pytest.fixture(scope="session")
def fault_model(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model folder for that set. Read-only."""
    labels = Manifest.read(drawn_set).labels
    return make_model_folder(tmp_path_factory.mktemp("fault-model") / "model", labels, HeadSpec("linear", (), 0.0))


@pytest.fixture(scope="session")
def unharmed(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of two epochs that nothing happens to, by the number of their ranks. Read-only."""
    folder = tmp_path_factory.mktemp("unharmed")
    for ranks in (1, 2):
        options = train_options(drawn_set, folder / str(ranks), "--train.epochs=2", "--train.checkpoint_steps=2")
        run = ended(options, folder / f"said-{ranks}", ranks)
        assert run.statuses == [0] * ranks, run.said
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


@pytest.fixture(scope="session")
def two_checkpoints(drawn_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its second epoch, with checkpoints of updates 7 (the end of the first) and 8. Read-only."""
    folder = tmp_path_factory.mktemp("two")
    options = train_options(drawn_set, folder / "run", "--train.epochs=2", "--train.checkpoint_steps=2")
    assert ended(options, folder / "said", 1, "kill 0 9").statuses == [-9]
    assert [p.name for p in sorted((folder / "run/checkpoints").iterdir())] == ["step-00000007", "step-00000008"]
    return folder / "run"


@pytest.fixture(scope="module")
def single_thread() -> Iterator[None]:
    """The same arithmetic in this process as in those of the ranks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 16 MiB, to be filled."""
    with small_file_system(tmp_path / "disk", "16m") as folder:
        yield Disk(folder)
