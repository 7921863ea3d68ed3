"""Does every sample come exactly once? Our loader and its peers on the same tars, in real processes, judged alike.

    python tests/bench/exactness.py [--json FILE]

Prints a Markdown table: a row for each stack of exactness_worker.py, a column for each promise of
toolkit/data/sampling/plan.py. The peers are negative controls: a check that none of them fails would prove little about
us. What is compared is which sample ids a rank is handed at which step; ours come from the plan that the trainer
follows (tests/toolkit/training/test_train.py watches the trainer itself). tests/toolkit/test_negative_controls.py runs
a part of this in `make test`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import exactness_worker
from exactness_worker import GLOBAL_BATCH, IMAGE_SIZE, RESUME_STEP, STACKS
from PIL import Image

#: Unequal, as shards packed by size or merged from several sources are; the sum divides by no batch and no world size.
SHARD_SIZES = (31, 17, 26, 20, 9)
WORLDS = (1, 2, 3)
#: Seconds after which a stack's processes count as hanging.
TIMEOUT = 60.0
JOBS = ("train", "resume", "eval", "few_train", "few_eval")


@dataclass(frozen=True)
class Run:
    """What the ranks of one job were handed."""

    ranks: Sequence[Sequence[Sequence[int]]]
    """[rank][step] → sample ids."""
    problem: str = ""
    """Why there is nothing to judge: an error, "hangs", "not offered"."""


@dataclass(frozen=True)
class Verdict:
    """Whether a promise is kept, and a table cell that says so or what went wrong."""

    kept: bool
    text: str = "yes"


Runs = dict[int, dict[str, Run]]  # world size → job → run


# --- judges: pure functions of ids ------------------------------------------------------------------------------------


def judge_once(run: Run, num_samples: int) -> Verdict:
    """Every id of 0..num_samples-1 exactly once over all ranks."""
    if run.problem:
        return Verdict(False, run.problem)
    return _once(_flat(global_batches(run)), num_samples)


def judge_steps(run: Run) -> Verdict:
    """Every rank makes the same number of steps, and at least one: otherwise an all-reduce waits for ever."""
    if run.problem:
        return Verdict(False, run.problem)
    counts = [len(steps) for steps in run.ranks]
    if len(set(counts)) == 1 and counts[0]:
        return Verdict(True)
    return Verdict(False, f"ranks make {_and(counts)} steps")


def judge_sizes(run: Run) -> Verdict:
    """The updates of the epoch have as many samples over all ranks, give or take one."""
    if run.problem:
        return Verdict(False, run.problem)
    sizes = [len(batch) for batch in global_batches(run)] or [0]
    if max(sizes) - min(sizes) <= 1:
        return Verdict(True)
    return Verdict(False, f"from {min(sizes)} to {max(sizes)} samples")


def judge_eval(run: Run, num_samples: int) -> Verdict:
    """Like judge_once. Unequal steps are no failure here, but they are said: a gather at every step would hang."""
    verdict, counts = judge_once(run, num_samples), [len(steps) for steps in run.ranks]
    if len(set(counts)) <= 1:
        return verdict
    return Verdict(verdict.kept, f"{verdict.text}, in {_and(counts)} steps")


def judge_same_batches(runs: dict[int, Run]) -> Verdict:
    """The samples of global batch t are the same at every world size; runs: world size → training run."""
    if problem := next((run.problem for run in runs.values() if run.problem), ""):
        return Verdict(False, problem)
    batches = {world: global_batches(run) for world, run in runs.items()}
    reference = batches[min(batches)]
    failures = {}
    for world, own in batches.items():
        steps = max(len(reference), len(own))
        differ = [t for t in range(steps) if reference[t : t + 1] != own[t : t + 1]]
        if differ:
            last = differ == [steps - 1]
            said = f"only the last of {steps} differs" if last else f"{len(differ)} of {steps} differ"
            failures[world] = Verdict(False, said)
    return across(failures)


def judge_resume(runs: dict[int, Run], resumed: dict[int, Run], step: int, num_samples: int) -> Verdict:
    """The first ``step`` steps at one world size and a run resumed there at any: together every id exactly once.

    Repeats and gaps that an epoch without a stop has as well are said but are judge_once's to blame.
    """
    verdicts = {}
    for world, rest in resumed.items():
        for run in runs.values():
            if rest.problem or run.problem:
                verdicts[world] = Verdict(False, rest.problem or run.problem)
                break
            ids = _flat(global_batches(run)[:step] + global_batches(rest))
            verdict = _once(ids, num_samples)
            if not verdict.kept and sorted(ids) == sorted(_flat(global_batches(runs[world]))):
                verdict = Verdict(True, f"yes, {verdict.text} as without a stop")
            if not verdicts.get(world) or not verdict.kept:
                verdicts[world] = verdict
    return across(verdicts)


def judge_few_shards(train: Run, evaluation: Run, num_samples: int) -> Verdict:
    """With fewer shards than ranks nothing raises, hangs or starves.

    As in judge_resume, repeats and gaps are said but are judge_once's and judge_eval's to blame.
    """
    if not (steps := judge_steps(train)).kept:
        return steps
    if evaluation.problem:
        return Verdict(False, f"trains; evaluation: {evaluation.problem}")
    texts = [judge_once(run, num_samples).text for run in (train, evaluation)]
    return Verdict(True, next((f"yes, but {text}" for text in texts if text != "yes"), "yes"))


def across(by_world: dict[int, Verdict]) -> Verdict:
    """One cell of the verdicts at several world sizes; those that say the same are said together."""
    kept = all(verdict.kept for verdict in by_world.values())
    worlds: dict[str, list[int]] = {}
    for world, verdict in by_world.items():
        if verdict.kept == kept and verdict.text != "yes":
            worlds.setdefault(verdict.text, []).append(world)
    if list(worlds) == ["not offered"]:
        return Verdict(False, "not offered")
    said = [f"{text} on {_and(at)} rank{'s' * (at != [1])}" for text, at in worlds.items()]
    return Verdict(kept, "; ".join(said) or "yes")


def global_batches(run: Run) -> list[list[int]]:
    """The sorted ids of every step over all ranks."""
    steps = max((len(steps) for steps in run.ranks), default=0)
    return [sorted(_flat(batch for own in run.ranks for batch in own[t : t + 1])) for t in range(steps)]


def _once(ids: Iterable[int], num_samples: int) -> Verdict:
    counts = Counter(ids)
    missing = sum(not counts[i] for i in range(num_samples))
    repeated = sum(count > 1 for count in counts.values())
    foreign = sum(not 0 <= i < num_samples for i in counts)
    found = {f"of {num_samples} missing": missing, "repeated": repeated, "that do not exist": foreign}
    wrong = ", ".join(f"{count} {what}" for what, count in found.items() if count)
    return Verdict(not wrong, wrong or "yes")


def _flat(batches: Iterable[Iterable[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def _and(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _each(judge: Callable[[int, dict[str, Run]], Verdict], worlds_from: int = 1) -> Callable[[Runs], Verdict]:
    return lambda runs: across({w: judge(w, jobs) for w, jobs in runs.items() if w >= worlds_from})


def _all(runs: Runs, job: str) -> dict[int, Run]:
    return {world: jobs[job] for world, jobs in runs.items()}


SAMPLES = sum(SHARD_SIZES)
CHECKS: dict[str, Callable[[Runs], Verdict]] = {
    "training: each sample once": _each(lambda _, jobs: judge_once(jobs["train"], SAMPLES)),
    "same steps on every rank": _each(lambda _, jobs: judge_steps(jobs["train"])),
    "updates of one size": _each(lambda _, jobs: judge_sizes(jobs["train"])),
    "evaluation: each sample once": _each(lambda _, jobs: judge_eval(jobs["eval"], SAMPLES)),
    "same batches at any world size": lambda runs: judge_same_batches(_all(runs, "train")),
    "resume, also at another world size": lambda runs: judge_resume(
        _all(runs, "train"), _all(runs, "resume"), RESUME_STEP, SAMPLES
    ),
    "fewer shards than ranks": _each(
        lambda w, jobs: judge_few_shards(jobs["few_train"], jobs["few_eval"], sum(SHARD_SIZES[: w - 1])), 2
    ),
}


# --- running ----------------------------------------------------------------------------------------------------------


def make_shards(folder: Path) -> None:
    """Tars of tiny JPEGs whose key and .cls are the sample's id, and the _info.json that timm's reader asks for."""
    names, first = [], 0
    for number, size in enumerate(SHARD_SIZES):
        names.append(f"shard-{number:03d}.tar")
        with tarfile.open(folder / names[-1], "w") as tar:
            for sample in range(first, first + size):
                jpeg = io.BytesIO()
                Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (sample, 99, 99)).save(jpeg, "JPEG")
                for suffix, data in (("jpg", jpeg.getvalue()), ("cls", str(sample).encode())):
                    member = tarfile.TarInfo(f"{sample:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        first += size
    splits = {"whole": len(names)} | {f"few{count}": count for count in range(1, max(WORLDS))}
    info = {}
    for name, count in splits.items():
        sizes = SHARD_SIZES[:count]
        info[name] = {"name": name, "filenames": names[:count], "shard_lengths": sizes, "num_samples": sum(sizes)}
    (folder / "_info.json").write_text(json.dumps({"splits": info}))


def run_stack(stack: str, world: int, shards: Path, timeout: float = TIMEOUT) -> dict[str, Run]:
    """Run all jobs of a stack in ``world`` processes; job → run."""
    # A fork server pays for the imports once, and unlike a fork of this process it has no threads to lose.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "timm.data", "accelerate", "webdataset"])
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        ranks = [
            context.Process(target=exactness_worker.rank_main, args=(stack, shards, out, rank, world))
            for rank in range(world)
        ]
        deadline = time.monotonic() + timeout
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        hangs = any(process.is_alive() for process in ranks)
        for process in ranks:
            process.kill()
            process.join()
        return _read_runs(out, world, "hangs" if hangs else "dies")


def _read_runs(out: Path, world: int, why_missing: str) -> dict[str, Run]:
    runs = {}
    for job in JOBS:
        files = [out / f"{job}-{rank}.json" for rank in range(world)]
        if all(file.exists() for file in files):
            results = [json.loads(file.read_text()) for file in files]
            problem = next((result["problem"] for result in results if result["problem"]), "")
            runs[job] = Run([result["steps"] for result in results], problem)
        else:
            runs[job], why_missing = Run([], why_missing), "not reached"  # only the first of them hung
    return runs


def judge_stack(runs: Runs) -> dict[str, Verdict]:
    """check → verdict over all world sizes of ``runs``."""
    return {check: judge(runs) for check, judge in CHECKS.items()}


def markdown(verdicts: dict[str, dict[str, Verdict]]) -> str:
    """The table."""
    rows = [["", *CHECKS], ["---"] * (1 + len(CHECKS))]
    rows += [[stack, *(verdict.text for verdict in row.values())] for stack, row in verdicts.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the verdicts here")
    arguments = parser.parse_args()
    if arguments.json and (arguments.json.is_dir() or not arguments.json.absolute().parent.is_dir()):
        print(f"error: --json must name a file in a folder that exists, not {arguments.json}", file=sys.stderr)
        return 2
    verdicts = {}
    with tempfile.TemporaryDirectory() as name:
        make_shards(Path(name))
        for stack in STACKS:
            verdicts[stack] = judge_stack({world: run_stack(stack, world, Path(name)) for world in WORLDS})
    versions = {package: version(package) for package in ("webdataset", "timm", "accelerate", "torch")}
    print(markdown(verdicts))
    print(f"\n{SAMPLES} samples in shards of {_and(SHARD_SIZES)}; global batch {GLOBAL_BATCH}; {_and(WORLDS)} ranks;")
    print(f"resumed at step {RESUME_STEP};", *(f"{name} {number};" for name, number in versions.items()))
    if arguments.json:
        table = {stack: {check: asdict(v) for check, v in row.items()} for stack, row in verdicts.items()}
        setting = {"shards": SHARD_SIZES, "global_batch": GLOBAL_BATCH, "world_sizes": WORLDS}
        content = {"setting": setting, "versions": versions, "table": table}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
