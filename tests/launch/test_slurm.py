"""launch/slurm, each script as a job of a Slurm that is this machine (fake_slurm.py): real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launch_tools import PROBE, ROOT, UPDATES, clean_env, newest_step, options_of, rows, wait_until, weights

pytest_plugins = ("launch_fixtures",)

SCRIPTS = ROOT / "launch" / "slurm"
FAKE = Path(__file__).with_name("fake_slurm.py")
Submit = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The fake Slurm's folder."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    return folder


@pytest.fixture
def submit(tmp_path: Path, state: Path) -> Submit:
    """Start sbatch with these words; its output is a pipe, stderr included."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" {name} "$@"\n')
        (commands / name).chmod(0o755)

    def start(*words: object, restarts: int = 0, **more: str) -> subprocess.Popen[str]:
        env = clean_env() | {"FAKE_SLURM": str(state), "POSTERS_VENV": str(Path(sys.executable).parents[1])}
        env["ACCELERATE_USE_CPU"] = "true"  # the scripts take configs for GPUs
        env["PATH"] = f"{commands}:{os.environ['PATH']}"
        if restarts:
            env["SLURM_RESTART_COUNT"] = str(restarts)
        return subprocess.Popen(
            ["sbatch", *map(str, words)],
            cwd=ROOT,
            env=env | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def ended(job: subprocess.Popen[str]) -> tuple[int, str]:
    """(status, output)."""
    output, _ = job.communicate(timeout=180)
    return job.returncode, output


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "shape"),
    [("one_node.sbatch", ["--gpus-per-node=2"]), ("nodes.sbatch", ["--nodes=2", "--gpus-per-node=1"])],
)
def test_two_processes_on_one_node_and_on_two(
    submit: Submit, script: str, shape: list[str], launch_set: Path, pair: Path, tmp_path: Path
):
    command = [SCRIPTS / script, "launch/train.py", *options_of(launch_set, tmp_path / "run")]
    status, output = ended(submit(*shape, "--cpus-per-task=1", *command))
    assert status == 0, output
    assert "2 process(es)" in output
    assert weights(tmp_path / "run") == weights(pair)


def test_preempted_saved_requeued_and_gone_on_with_fewer_processes(
    submit: Submit, state: Path, launch_set: Path, tmp_path: Path
):
    out = tmp_path / "run"
    command = [
        SCRIPTS / "preemptible.sbatch",
        PROBE,
        tmp_path,
        "pause update 4 0",
        *options_of(launch_set, out),
        "--resume",
    ]
    job = submit("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", *command)
    wait_until(lambda: (tmp_path / "happened").exists() or job.poll() is not None, "the fourth update")
    for task in (state / "tasks").read_text().split():
        os.killpg(int(task), signal.SIGTERM)
    (tmp_path / "go").touch()
    _, output = ended(job)
    assert "2 process(es)" in output and "stopped and saved: requeued" in output and "Traceback" not in output, output
    assert (state / "requeued").exists()
    assert newest_step(out) == 5  # of two processes, the update after the one in which the signal came

    (state / "requeued").unlink()
    status, output = ended(submit("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", *command, restarts=1))
    assert status == 0, output
    assert "1 process(es)" in output and "resumed from" in output and not (state / "requeued").exists()
    assert [int(row["update"]) for row in rows(out / "log.csv")] == list(range(1, UPDATES + 1))
    assert newest_step(out) == UPDATES


def python(code: str) -> list[str]:
    """The preemptible job with this program in place of a training."""
    return ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", str(SCRIPTS / "preemptible.sbatch"), "-c", code]


@pytest.mark.parametrize(
    ("statuses", "restarts", "requeued", "status"),
    [
        ((0, 0), 0, False, 0),
        ((75, 75), 0, True, None),
        ((75, 75), 500, True, None),  # each of these starts got somewhere
        ((2, 2), 0, False, 2),
        ((1, 0), 0, False, 1),
        ((69, 2), 0, False, 2),  # one met bad input, the other lost it: another start would end no better
        ((2, 69), 0, False, 2),
        ((1, 69), 0, False, 1),
        ((75, 2), 0, False, 2),
        ((69, 69), 0, True, None),
        ((69, 69), 10, False, 69),
        ((0, 69), 0, True, None),
        ((-15, -15), 9, True, None),
        ((-15, -15), 10, False, 143),
        ((69, -9), 0, True, None),  # the node's memory was short, or the node
        ((-9, 75), 10, False, 137),
        ((-6, -9), 0, True, None),  # NCCL ends a process whose peer is gone
    ],
)
def test_what_is_requeued(
    submit: Submit, state: Path, statuses: tuple[int, int], restarts: int, requeued: bool, status: int | None
):
    code = (
        f"import os\nstatus = {statuses}[int(os.environ['RANK'])]\n"
        "os.kill(os.getpid(), -status) if status < 0 else os._exit(status)"
    )
    result, output = ended(submit(*python(code), restarts=restarts))
    assert (state / "requeued").exists() == requeued, output
    if status is not None:  # a requeue ends the script by a signal
        assert result == status, output
    assert not (ROOT / f".posters-{(state / 'job').read_text()}").exists()


@pytest.mark.parametrize(("other", "requeued"), [("", True), ("2", False)])
def test_a_task_that_is_killed_with_its_shell(submit: Submit, state: Path, other: str, requeued: bool):
    """As Slurm ends a step: nothing is left to say what became of the task. What the other one said counts."""
    code = (
        "import os, signal, time\n"
        f"if os.environ['RANK'] == '0': os._exit(int({other!r} or 69))\n"
        "os.killpg(os.getpgid(0), signal.SIGKILL)"
    )
    result, output = ended(submit(*python(code)))
    assert (state / "requeued").exists() == requeued, output
    assert ("interrupted (status 137)" in output) == requeued
    assert requeued or result == 2


#: A task that stops as a training does, and counts the signals that it got until it did.
STOPPING = """
import os, pathlib, signal, sys, time
got = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: got.append(number))
folder = pathlib.Path(os.environ["FAKE_SLURM"])
(folder / ("up" + os.environ["RANK"])).touch()
while not got:
    time.sleep(0.01)
while not (folder / "go").exists():
    time.sleep(0.01)
(folder / ("got" + os.environ["RANK"])).write_text(" ".join(map(str, map(int, got))))
sys.exit(75)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_step", [True, False], ids=["every process", "the shell alone"])
def test_a_signal_reaches_the_task_and_its_status_the_job(
    submit: Submit, state: Path, whole_step: bool, number: signal.Signals
):
    """However the cluster tracks processes. Never two SIGINT, the second of which would end a training unsaved."""
    job = submit(*python(STOPPING))
    wait_until(lambda: (state / "up0").exists() and (state / "up1").exists(), "both tasks")
    tasks = [int(task) for task in (state / "tasks").read_text().split()]
    for task in tasks:
        (os.killpg if whole_step else os.kill)(task, number)
    time.sleep(1.5)  # more than the shell waits before it hands a SIGINT on
    (state / "go").touch()
    _, output = ended(job)
    assert (state / "requeued").exists() and "stopped and saved: requeued" in output, output
    for rank in range(2):
        got = (state / f"got{rank}").read_text().split()
        assert got[0] == str(int(number if whole_step else signal.SIGTERM))
        assert got[1:] in ([], [str(int(signal.SIGTERM))])


def test_the_number_of_tries_can_be_told(submit: Submit, state: Path):
    result, output = ended(submit(*python("raise SystemExit(69)"), restarts=2, POSTERS_RESTARTS="2"))
    assert result == 69 and "after 2 restarts" in output and not (state / "requeued").exists()


def test_bad_input_is_said_and_not_tried_again(submit: Submit, state: Path, tmp_path: Path):
    result, output = ended(
        submit(
            "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", SCRIPTS / "preemptible.sbatch", "launch/train.py",
            "--shards", tmp_path, "--out", tmp_path / "run", "--resume", "--optim.lrr=1",
        )
    )  # fmt: skip
    assert result == 2 and "error: unknown key 'optim.lrr'" in output and not (state / "requeued").exists()


def test_a_training_that_could_not_go_on_is_not_begun(submit: Submit, state: Path):
    result, output = ended(
        submit("--cpus-per-task=1", SCRIPTS / "preemptible.sbatch", "launch/train.py", "--out", "run")
    )
    assert result == 2 and output.startswith("error: give --resume") and not (state / "tasks").exists()


def test_a_cancelled_job_is_not_requeued(submit: Submit, state: Path):
    """scancel reaches the batch script too; the tasks stop as a training does."""
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open(os.environ['FAKE_SLURM'] + '/up' + os.environ['RANK'], 'w')\n"
        "time.sleep(120)"
    )
    job = submit(*python(code))
    wait_until(lambda: (state / "up0").exists() and (state / "up1").exists(), "both tasks")
    os.kill(int((state / "batch").read_text()), signal.SIGTERM)
    for task in (state / "tasks").read_text().split():
        os.killpg(int(task), signal.SIGTERM)
    result, output = ended(job)
    assert result == 143 and not (state / "requeued").exists(), output


def test_what_torch_is_told_of_a_step(submit: Submit, state: Path):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    # In one write: the tasks share a pipe.
    code = f"import os, sys; sys.stdout.write(' '.join(['told', *(os.environ[n] for n in {names})]) + chr(10))"
    words = python(code)
    words[0] = "--nodes=2"
    result, output = ended(submit(*words))
    told = sorted(line.split()[1:] for line in output.splitlines() if line.startswith("told "))
    assert result == 0 and [line[:4] for line in told] == [[str(rank), "4", str(rank % 2), "2"] for rank in range(4)]
    port = 20000 + int((state / "job").read_text()) % 12000
    assert {tuple(line[4:]) for line in told} == {("localhost", str(port))}
