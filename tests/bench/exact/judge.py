"""Judges of what the ranks were handed: pure functions of sample ids, the same for every stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from exact.stack import RESUME_STEP, SHARD_SIZES


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


def judge_resume(runs: dict[int, Run], resumed: dict[tuple[int, int], Run], step: int, num_samples: int) -> Verdict:
    """The first ``step`` steps at one world size and a run resumed at that size or another: every id exactly once.

    ``resumed`` has (size of the stopped run, size of the resumed run). Repeats and gaps of which an epoch without a
    stop has as many are said but are judge_once's to blame.
    """
    verdicts = {}
    for (stopped, world), rest in resumed.items():
        if problem := rest.problem or runs[stopped].problem:
            verdicts[stopped, world] = Verdict(False, problem)
            continue
        verdict = _once(_flat(global_batches(runs[stopped])[:step] + global_batches(rest)), num_samples)
        if not verdict.kept and verdict == judge_once(runs[world], num_samples):
            verdict = Verdict(True, f"yes, {verdict.text} as without a stop")
        verdicts[stopped, world] = verdict
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


def across(verdicts: Mapping[int, Verdict] | Mapping[tuple[int, int], Verdict]) -> Verdict:
    """One cell of the verdicts at several world sizes, or from one to another; those that say the same are joined."""
    kept = all(verdict.kept for verdict in verdicts.values())
    at: dict[str, list[int]] = {}
    between: dict[str, list[str]] = {}
    for worlds, verdict in verdicts.items():
        if verdict.kept != kept or verdict.text == "yes":
            continue
        if isinstance(worlds, int) or worlds[0] == worlds[1]:
            at.setdefault(verdict.text, []).append(worlds if isinstance(worlds, int) else worlds[0])
        else:
            between.setdefault(verdict.text, []).append(f"{worlds[0]}→{worlds[1]}")
    if {*at, *between} == {"not offered"}:
        return Verdict(False, "not offered")
    said = [f"{text} on {_and(numbers)} rank{'s' * (numbers != [1])}" for text, numbers in at.items()]
    said += [f"{text} from {_and(pairs)} ranks" for text, pairs in between.items()]
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


def _and(numbers: Sequence[object]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def _each(judge: Callable[[int, dict[str, Run]], Verdict], worlds_from: int = 1) -> Callable[[Runs], Verdict]:
    return lambda runs: across({w: judge(w, jobs) for w, jobs in runs.items() if w >= worlds_from})


def _all(runs: Runs, job: str) -> dict[int, Run]:
    return {world: jobs[job] for world, jobs in runs.items()}


def _resume(runs: Runs, same: bool) -> Verdict:
    """Resume at the size of the stopped run, or at every other."""
    pairs = {(stopped, world): runs[world][f"resume_{stopped}"] for stopped in runs for world in runs}
    chosen = {pair: run for pair, run in pairs.items() if (pair[0] == pair[1]) == same}
    return judge_resume(_all(runs, "train"), chosen, RESUME_STEP, SAMPLES)


SAMPLES = sum(SHARD_SIZES)
CHECKS: dict[str, Callable[[Runs], Verdict]] = {
    "training: each sample once": _each(lambda _, jobs: judge_once(jobs["train"], SAMPLES)),
    "same steps on every rank": _each(lambda _, jobs: judge_steps(jobs["train"])),
    "updates of one size": _each(lambda _, jobs: judge_sizes(jobs["train"])),
    "evaluation: each sample once": _each(lambda _, jobs: judge_eval(jobs["eval"], SAMPLES)),
    "same batches at any world size": lambda runs: judge_same_batches(_all(runs, "train")),
    "resume": lambda runs: _resume(runs, same=True),
    "resume at another world size": lambda runs: _resume(runs, same=False),
    "fewer shards than ranks": _each(
        lambda w, jobs: judge_few_shards(jobs["few_train"], jobs["few_eval"], sum(SHARD_SIZES[: w - 1])), 2
    ),
}


def judge_stack(runs: Runs) -> dict[str, Verdict]:
    """check → verdict over all world sizes of ``runs``."""
    return {check: judge(runs) for check, judge in CHECKS.items()}
