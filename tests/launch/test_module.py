"""Several processes without a checkout: launchers start the module `toolkit` in place of launch/train.py."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from launch_tools import accelerate_launch, free_port, options_of, run_python

pytest_plugins = ("launch_fixtures",)


@pytest.mark.parametrize("launcher", ["accelerate", pytest.param("torchrun", marks=pytest.mark.long)])
def test_a_launcher_starts_the_module(launcher: str, launch_set: Path, tmp_path: Path):
    words = ["-m", "toolkit", "train", *options_of(launch_set, tmp_path / "run", "--train.epochs=1")]
    if launcher == "accelerate":
        run = accelerate_launch(*words)
    else:
        how = ["--nproc-per-node", "2", "--master-port", str(free_port())]
        run = run_python("-m", "torch.distributed.run", *how, *words)
    assert run.returncode == 0, run.stderr
    assert "2 process(es) on cpu" in run.stderr
    with (tmp_path / "run" / "epochs.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 1
