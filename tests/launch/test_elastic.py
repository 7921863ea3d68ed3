"""torchrun instead of accelerate's launcher: a killed worker, a group that starts again from the newest checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from launch_tools import (
    PROBE,
    ROOT,
    SPEED,
    UPDATES,
    clean_env,
    free_port,
    newest_step,
    options_of,
    rows,
    wait_until,
    weights,
)

pytest_plugins = ("launch_fixtures",)


def torchrun(*words: object) -> subprocess.Popen[str]:
    """Its processes meet where --rdzv-endpoint says."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", *map(str, words)],
        cwd=ROOT,
        env=clean_env() | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(job: subprocess.Popen[str]) -> str:
    """What it said, once it ended well."""
    _, said = job.communicate(timeout=180)
    assert job.returncode == 0, said
    return said


def test_a_killed_worker_costs_updates_since_the_checkpoint_and_nothing_else(
    launch_set: Path, pair: Path, tmp_path: Path
):
    out = tmp_path / "run"
    said = ended(torchrun(
        "--rdzv-endpoint=localhost:0", "--nnodes=1:1", "--nproc-per-node=2", "--max-restarts=1",
        PROBE, tmp_path, "kill update 4 1", *options_of(launch_set, out), "--resume",
    ))  # fmt: skip
    assert (tmp_path / "happened").exists()
    assert "no checkpoint" not in said  # the first start: --resume begins anew
    assert "error: lost another process of this run" in said  # of the one that was left
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in said
    assert "resumed from" in said  # the second
    assert [int(row["update"]) for row in rows(out / "log.csv")] == list(range(1, UPDATES + 1))
    assert newest_step(out) == UPDATES
    assert weights(out) == weights(pair)
    assert rows(out / "epochs.csv", *SPEED) == rows(pair / "epochs.csv", *SPEED)


@pytest.mark.long
def test_a_node_that_comes_later_is_taken_in_and_nothing_is_done_twice(launch_set: Path, tmp_path: Path):
    """torchrun stops the first node's process by SIGTERM: it saves, and both go on from there."""
    out = tmp_path / "run"
    words = [
        f"--rdzv-endpoint=localhost:{free_port()}", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=0",
        "--rdzv-conf=last_call_timeout=1", PROBE, tmp_path, "wait update 4 0", *options_of(launch_set, out), "--resume",
    ]  # fmt: skip
    first = torchrun(*words)
    wait_until((tmp_path / "happened").exists, "the fourth update")
    second = torchrun(*words)
    said = ended(first) + ended(second)
    assert "1 process(es)" in said and "stopped by a signal; checkpoint saved" in said
    assert "2 process(es)" in said and "epoch 1, step 4" in said  # resumed from the checkpoint of that moment
    assert [int(row["update"]) for row in rows(out / "log.csv")] == list(range(1, UPDATES + 1))
    assert newest_step(out) == UPDATES
