"""What the tests of ``launch`` share: a small run, what it leaves, and how to wait for processes."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "toolkit"))  # no package, like all tests

from toolkit_helpers import ROOT, TINY, accelerate_launch, clean_env, free_port, launch_2, run_python, weights_option

__all__ = ["ROOT", "accelerate_launch", "clean_env", "free_port", "launch_2", "run_python"]

PROBE = ROOT / "tests" / "launch" / "probe_launch.py"

EPOCHS = 2
#: The last update of the run that ``options_of`` describes.
UPDATES = 10


def options_of(launch_set: Path, out: Path, *more: str) -> list[str]:
    """Options of ``posters train`` for a run of ten updates, with a checkpoint after each.

    Weights come with statistics of BatchNorm, which a process's part of eight samples is too small to give.
    """
    return [
        "--shards", str(launch_set), "--out", str(out), *TINY, "--train.batch_size=8", "--train.eval_batch_size=4",
        f"--train.epochs={EPOCHS}", "--train.checkpoint_steps=1", "--train.log_steps=1", "--train.precision=no",
        weights_option(), *more,
    ]  # fmt: skip


def newest_step(out: Path) -> int:
    """Updates that the newest checkpoint of a run holds."""
    return max(int(path.name.partition("-")[2]) for path in (out / "checkpoints").glob("step-????????"))


def rows(path: Path, *without: str) -> list[dict[str, str]]:
    """Of a CSV, but for columns ``without``."""
    with open(path, newline="", encoding="utf-8") as stream:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(stream)]


#: Columns of epochs.csv that say how fast it went, not what came out.
SPEED = ("images_per_s", "data_wait", "decode_cores", "copy", "seconds")


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Poll; fails the test if it takes longer."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
