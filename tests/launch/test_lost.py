"""Processes that do not find each other, and what the others are told of one that cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from launch_tools import ROOT, clean_env, free_port, options_of

from shards.errors import UserError
from toolkit.distributed.launch import lost_peer, processes_of, restarts_share_a_store, wait_seconds

pytest_plugins = ("launch_fixtures",)


def ranks(port: int, world_size: int, *ranks: int, **env: str) -> list[dict[str, str]]:
    """Environments of processes that no launcher started, as in a Slurm step."""
    shared = clean_env() | env | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world_size)}
    return [
        shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)} for rank in ranks
    ]  # fmt: skip


def start(env: dict[str, str], *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("told", "processes"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "1", "RANK": "7"}, 1),
        ({"WORLD_SIZE": "2"}, "RANK is ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "7"}, "MASTER_ADDR is ''"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "7", "MASTER_ADDR": "a"}, 2),
    ],
)
def test_what_a_launcher_told(told: dict[str, str], processes: int | str):
    if isinstance(processes, int):
        assert processes_of(told) == processes
        return
    with pytest.raises(UserError, match="start with a launcher") as caught:
        processes_of(told)
    assert processes in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.long
def test_a_process_that_nobody_joins_says_so(launch_set: Path, tmp_path: Path):
    (env,) = ranks(free_port(), 2, 0, POSTERS_TIMEOUT="2")
    alone = start(env, "launch/train.py", *options_of(launch_set, tmp_path / "run"))
    _, said = alone.communicate(timeout=60)
    assert alone.returncode == 69 and "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert f"did not connect at 127.0.0.1:{env['MASTER_PORT']}" in line and "time limit 2 s" in line
    assert "check that every node is started" in line and "docs/scale/nodes-and-slurm.md" in line
    assert not (tmp_path / "run").exists()


#: launch/train.py, which says at the very end whether the group of processes is still there.
WATCHED = """
import atexit, sys
import torch.distributed as dist
from toolkit.cli.main import run
atexit.register(lambda: print("the group is", "there" if dist.is_initialized() else "left", file=sys.stderr))
run(["train", *sys.argv[1:]])
"""


def test_every_process_is_told_what_the_main_one_met(launch_set: Path, tmp_path: Path):
    """A run that is there already: only the main process looks, and all end with the status of bad input.

    They leave their group first: with it, now and then one ends with SIGABRT instead.
    """
    (tmp_path / "run" / "model").mkdir(parents=True)
    both = [
        start(env, "-c", WATCHED, *options_of(launch_set, tmp_path / "run")) for env in ranks(free_port(), 2, 0, 1)
    ]  # fmt: skip
    for job in both:
        _, said = job.communicate(timeout=60)
        assert job.returncode == 2 and "already contains a run: pass --resume" in said and "Traceback" not in said
        assert said.endswith("the group is left\n")


@pytest.mark.parametrize("text", ["0", "-5", "soon", "1.5", ""])
def test_a_timeout_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("POSTERS_TIMEOUT", text)
    with pytest.raises(UserError, match=r"POSTERS_TIMEOUT is .* whole seconds"):
        wait_seconds()


def test_other_errors_keep_their_traceback():
    assert lost_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    told = lost_peer(RuntimeError("[/src/gloo/transport/tcp/pair.cc:5] Connection closed by peer [10.0.0.1]:2. More"))
    assert told is not None and "(Connection closed by peer [10.0.0.1]:2)" in str(told)
    assert lost_peer(dist.DistNetworkError("the server is gone")) is not None


def test_restarts_in_the_store_of_the_lost_group_are_told_of():
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    assert restarts_share_a_store(env)
    assert not restarts_share_a_store(env | {"TORCHELASTIC_MAX_RESTARTS": "0"})
    assert not restarts_share_a_store(env | {"TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert not restarts_share_a_store(os.environ)
