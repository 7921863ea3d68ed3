"""For all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# As many processes run tests as there are cores. Threads beyond the number of cores mostly wait for one another, and
# take three times the CPU seconds. Set before torch is loaded, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests start hundreds of processes. Without bytecode files, each of them compiles our modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Whoever starts a shell job in the background has its Ctrl-C ignored, and every process below inherits that: the tests
# that press Ctrl-C in a child would then wait for ever. A handler of our own is reset to the default in children.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exempt all modules and tests from garbage collection, which takes a second or more with so many objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let Python free everything at its end, as some libraries expect."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that is marked ``gpu`` where there is no GPU."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """A running S3 server, the one that this process's environment names."""
    from remote_tools import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_address: str) -> str:
    """``s3://NAME`` of an empty bucket of a test's own."""
    from remote_tools import new_bucket

    return new_bucket()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A `browser_tools.Window`: a window of a browser that the tests of a module share."""
    from browser_tools import LACKING, Window, started

    if LACKING:
        pytest.skip(LACKING)
    with started(tmp_path_factory.mktemp("profile")) as driver:
        yield Window(driver)


@pytest.fixture(scope="session")
def drawn_posters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with images/ and metadata.csv of 90 drawn posters and ten bad rows. Read-only."""
    from shards.inputs.synthetic import draw_poster_set

    folder = tmp_path_factory.mktemp("posters")
    draw_poster_set(folder, 90, seed=3)
    return folder


@pytest.fixture(scope="session")
def drawn_set(drawn_posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of those posters: three train tars, one val, one test. Read-only."""
    from shared_tools import build_small_set

    return build_small_set(drawn_posters, tmp_path_factory.mktemp("shards"))
