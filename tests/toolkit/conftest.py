"""A small drawn shard set and an untrained model folder, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from shared_tools import small_file_system
from toolkit_helpers import make_model_folder

from shards.dataset.labels import LabelSet
from toolkit.models.heads import HeadSpec


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are slower on several threads, the more so beside other test processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    with small_file_system(tmp_path / "small", "64k") as folder:
        yield folder


@pytest.fixture(scope="session")
def posters(drawn_posters: Path) -> Path:
    """What most tests here start from."""
    return drawn_posters


@pytest.fixture(scope="session")
def shard_set(drawn_set: Path) -> Path:
    """And its shards."""
    return drawn_set


@pytest.fixture(scope="session")
def labels(shard_set: Path) -> LabelSet:
    from shards.dataset.manifest import Manifest

    return Manifest.read(shard_set).labels


@pytest.fixture(scope="session")
def model_folder(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model folder with a linear head. Read-only."""
    return make_model_folder(tmp_path_factory.mktemp("model") / "model", labels, HeadSpec("linear", (), 0.0))
