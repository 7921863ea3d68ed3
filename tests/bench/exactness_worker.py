"""One rank of one stack: runs jobs of exactness.py and writes down which sample ids it was handed at each step.

``rank_main`` is what exactness.py starts in a process of its own, gloo group included; a stack with a venv of its own
goes on there, in the same process. Each stack of ``exact`` is written as its own documentation tells its users to, and
in its most favourable form where there is a choice: fixed seeds, no DataLoader workers (readers that deal out whole
shards deal them out to workers too, so more workers only make more starved readers) and the same global batch at any
world size. Nothing here judges; exactness.py does.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path

from exact import STACKS
from exact.stack import RESUME_STEP, Ids, NotOffered, Saved, Setup

Job = Callable[[], Iterator[Ids]]


@dataclass(frozen=True)
class Task:
    """What one rank is told. All are texts or numbers, because they may pass through a command line."""

    stack: str
    phase: str
    """prepare, whole (training and evaluation) or resume (from the states that phase whole saved)."""
    shards: str
    home: str
    """Folder of the stack's own, which lasts over all its phases and world sizes."""
    out: str
    """Folder for the results of this phase at this world size."""
    splits: list[str]
    """The splits to convert, or the split to load and one with fewer shards than ranks."""
    rank: int
    world: int
    worlds: list[int]
    """The world sizes to resume from."""

    def setup(self, split: str) -> Setup:
        return Setup(Path(self.shards), Path(self.home), split, self.rank, self.world)

    def state(self, world: int, rank: int) -> Path:
        """File of the state that a rank saved."""
        return Path(self.home) / f"state-{world}-{rank}.pickle"


def jobs_of(task: Task) -> dict[str, Job]:
    """What a rank does, in order."""
    stack = STACKS[task.stack]
    if task.phase == "prepare":
        return {"prepare": partial(prepare, task)}
    whole = task.setup(task.splits[0])
    if task.phase == "resume":
        return {f"resume_{stopped}": partial(resumed, task, whole, stopped) for stopped in task.worlds}
    jobs: dict[str, Job] = {
        "train": partial(train, task, whole, task.state(task.world, task.rank)),
        "eval": partial(stack.evaluate, whole),
    }
    for split in task.splits[1:]:
        few = task.setup(split)
        jobs["few_train"] = partial(train, task, few, None)
        jobs["few_eval"] = partial(stack.evaluate, few)
    return jobs


def prepare(task: Task) -> Iterator[Ids]:
    """Convert every split, which hands out no ids."""
    convert = STACKS[task.stack].prepare
    assert convert is not None
    for split in task.splits:
        convert(task.setup(split))
    yield from ()


def train(task: Task, setup: Setup, state: Path | None) -> Iterator[Ids]:
    """An epoch from its start, whose state at RESUME_STEP is saved to a file."""
    epoch = STACKS[task.stack].train(setup, None)
    for step, ids in enumerate(epoch.steps, 1):
        yield ids
        if step == RESUME_STEP and state is not None and epoch.state is not None:
            state.write_bytes(pickle.dumps(epoch.state()))


def resumed(task: Task, whole: Setup, stopped: int) -> Iterator[Ids]:
    """The rest of the epoch that ``stopped`` ranks began."""
    files = [task.state(stopped, rank) for rank in range(stopped)]
    if not all(file.exists() for file in files):
        raise RuntimeError("no state was saved")
    saved = Saved([pickle.loads(file.read_bytes()) for file in files])
    return STACKS[task.stack].train(whole, saved).steps


def rank_main(task: Task) -> None:
    """Run every job of one rank and write OUT/JOB-RANK.json after each, so that a hang leaves what came before it."""
    # Most loaders read these; the group itself meets in a file, so no port can be taken.
    os.environ.update(RANK=str(task.rank), LOCAL_RANK=str(task.rank))
    os.environ.update(WORLD_SIZE=str(task.world), LOCAL_WORLD_SIZE=str(task.world), ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", OMP_NUM_THREADS="1")
    os.environ.update(HF_HOME=task.home, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if peer := STACKS[task.stack].peer:
        from peers import python_of

        with open(Path(task.out) / f"log-{task.rank}.txt", "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.execv(python_of(peer), [str(python_of(peer)), __file__, json.dumps(task.__dict__)])
    run_jobs(task)


def reason(error: Exception, task: Task) -> str:
    """The first line of an error, short, without the folders of this machine."""
    text = (
        f"{type(error).__name__}: {error}".partition("\n")[0].replace(task.home, "HOME").replace(task.shards, "SHARDS")
    )
    return text[:100].rstrip(" .:")


def run_jobs(task: Task) -> None:
    """The jobs of a rank, in the interpreter that has the stack's library."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    out = Path(task.out)
    dist.init_process_group(
        "gloo", init_method=f"file://{out / 'group'}", rank=task.rank, world_size=task.world,
        timeout=timedelta(seconds=100),
    )  # fmt: skip
    if task.rank == 0:
        versions = {name: version(name) for name in STACKS[task.stack].libraries}
        (out / "versions.json").write_text(json.dumps(versions))
    for name, job in jobs_of(task).items():
        steps: list[Ids] = []
        problem = ""
        try:
            for ids in job():
                steps.append(ids)
        except NotOffered:
            problem = "not offered"
        except Exception as error:  # whatever a peer raises is its result, not a failure of this bench
            problem = reason(error, task)
        part = out / f"{name}-{task.rank}.part"
        part.write_text(json.dumps({"steps": steps, "problem": problem}))
        part.replace(out / f"{name}-{task.rank}.json")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_jobs(Task(**json.loads(sys.argv[1])))
