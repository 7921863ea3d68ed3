"""Fixtures of the tests of ``launch``; a test module that wants them says ``pytest_plugins = ("launch_fixtures",)``.

They are no conftest.py, because tests/toolkit has one and imports from it by that name.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from launch_tools import launch_2, options_of
from shared_tools import build_small_set

from shards.inputs.synthetic import draw_poster_set


@pytest.fixture(scope="session")
def launch_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 60 drawn posters: five updates of eight samples an epoch, four batches of validation. Read-only."""
    folder = tmp_path_factory.mktemp("launch-posters")
    draw_poster_set(folder, 60, seed=3)
    return build_small_set(folder, tmp_path_factory.mktemp("launch-set"))


@pytest.fixture(scope="session")
def pair(launch_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes on one node that nothing interrupts. Read-only."""
    out = tmp_path_factory.mktemp("pair") / "run"
    run = launch_2("launch/train.py", *options_of(launch_set, out))
    assert run.returncode == 0, run.stderr
    return out
