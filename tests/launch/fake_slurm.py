"""What launch/slurm asks of Slurm, done on this machine: ``fake_slurm.py sbatch|srun|scontrol ...``.

sbatch runs the job at once, on nodes that are all this machine, and exits as the batch script does. Known of Slurm and
kept here: the options that the scripts may use; SLURM_* variables of a job and of a step; srun starts one process a
task and returns the highest status, 128 + N for signal N; a requeue ends the batch script by SIGTERM. FAKE_SLURM is a
folder: ``job`` (its number), ``tasks`` (process groups of the step under way), ``batch`` (process id of the script),
``requeued``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "."))

SBATCH = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "output", "requeue", "open-mode",
    "signal", "partition",
}  # fmt: skip
SRUN = {"nodes", "ntasks-per-node", "cpus-per-task", "cpu-bind", "kill-on-bad-exit", "wait"}


def options(words: list[str], known: set[str]) -> tuple[dict[str, str], list[str]]:
    """(--name=value pairs up to the first other word, what follows them)."""
    found: dict[str, str] = {}
    for number, word in enumerate(words):
        if not word.startswith("--"):
            return found, words[number:]
        name, _, value = word[2:].partition("=")
        if name not in known:
            sys.exit(f"fake slurm: unrecognised option {word}")
        found[name] = value
    return found, []


def sbatch(words: list[str]) -> int:
    given, (script, *arguments) = options(words, SBATCH)
    lines = Path(script).read_text().splitlines()
    assert lines[0].startswith("#!"), "sbatch wants an interpreter"
    head = [line for line in lines if line.startswith("#SBATCH ")]
    asked = options([line.split()[1] for line in head], SBATCH)[0] | given
    nodes = int(asked["nodes"].partition("-")[0])
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": ",".join(["localhost"] * nodes),
        "SLURM_NTASKS_PER_NODE": asked["ntasks-per-node"],
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
        "SLURM_GPUS_ON_NODE": asked["gpus-per-node"],
    }
    (STATE / "job").write_text(job["SLURM_JOB_ID"])
    spooled = shutil.copy(script, STATE / "slurm_script")  # as slurmd does: $0 is not where the script was
    with subprocess.Popen(["bash", spooled, *arguments], env=os.environ | job) as batch:
        (STATE / "batch").write_text(str(batch.pid))
        return status_of(batch.wait())


def srun(words: list[str]) -> int:
    asked, command = options(words, SRUN)
    if "cpus-per-task" not in asked:
        sys.exit("fake slurm: srun would give each task one core: say --cpus-per-task")
    nodes = int(asked.get("nodes", os.environ["SLURM_JOB_NUM_NODES"]))
    per_node = int(asked.get("ntasks-per-node", os.environ["SLURM_NTASKS_PER_NODE"]))
    tasks = []
    for number in range(nodes * per_node):
        step = {
            "SLURM_PROCID": str(number),
            "SLURM_NODEID": str(number // per_node),
            "SLURM_LOCALID": str(number % per_node),
            "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
            "SLURM_STEP_NUM_NODES": str(nodes),
        }
        tasks.append(subprocess.Popen(command, env=os.environ | step, start_new_session=True))
    (STATE / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    ended_at = None
    while any(task.poll() is None for task in tasks):
        over = [task.returncode for task in tasks if task.returncode is not None]
        if any(over) and asked.get("kill-on-bad-exit") == "1":
            for task in tasks:
                task.terminate()
        if over and ended_at is None:
            ended_at = time.monotonic()
        if ended_at and "wait" in asked and time.monotonic() - ended_at > int(asked["wait"]):
            for task in tasks:
                with contextlib.suppress(ProcessLookupError):  # all of it is over already
                    os.killpg(task.pid, signal.SIGKILL)
        time.sleep(0.05)
    return max(status_of(task.returncode) for task in tasks)


def status_of(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        print(words[2].replace(",", "\n"))
        return 0
    assert words == ["requeue", os.environ["SLURM_JOB_ID"]], words
    (STATE / "requeued").touch()
    os.kill(int((STATE / "batch").read_text()), signal.SIGTERM)
    return 0


if __name__ == "__main__":
    commands = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol}
    sys.exit(commands[sys.argv[1]](sys.argv[2:]))
