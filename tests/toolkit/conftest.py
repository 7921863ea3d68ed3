"""A small drawn shard set and an untrained model folder, made once a session."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toolkit_helpers import make_model_folder

from shards.build import BuildOptions, build_shards
from shards.labels import LabelSet
from toolkit.demo_posters import draw_poster_set
from toolkit.models import HeadSpec


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
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]).returncode:
        pytest.skip("mounting a tmpfs needs root and the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def posters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images/ and metadata.csv of 90 drawn posters and ten bad rows."""
    folder = tmp_path_factory.mktemp("posters")
    draw_poster_set(folder, 90, seed=3)
    return folder


@pytest.fixture(scope="session")
def shard_set(posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of those posters: several train tars, one val, one test. Read-only."""
    out = tmp_path_factory.mktemp("shards")
    build_shards(
        BuildOptions(
            metadata=posters / "metadata.csv",
            images=posters / "images",
            out=out,
            fractions=(0.6, 0.2, 0.2),
            samples_per_shard=20,
            workers=1,
        )
    )
    return out


@pytest.fixture(scope="session")
def labels(shard_set: Path) -> LabelSet:
    from shards.manifest import Manifest

    return Manifest.read(shard_set).labels


@pytest.fixture(scope="session")
def model_folder(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model folder with a linear head. Read-only."""
    return make_model_folder(tmp_path_factory.mktemp("model") / "model", labels, HeadSpec("linear", (), 0.0))
