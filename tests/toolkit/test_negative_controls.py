"""The promises of toolkit/data/sampling/plan.py, and the peers that do not make them, judged alike in real processes.

A check that every stack passes says little about ours, so the peers are negative controls: each fails here what the
table of tests/bench/exactness.py says that it fails, and passes what the table credits it with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # no package, like all tests

import exactness as ex
from exactness import Run, Verdict

ONCE, STEPS, SIZES, EVAL, BATCHES, RESUME, FEW = ex.CHECKS
OURS = "poster-toolkit"

#: What each peer fails on two ranks, as the table says; everything else it passes.
FAILS = {
    "WebDataset, split_by_node": {STEPS, SIZES, BATCHES, RESUME, FEW},
    "WebDataset, resampled": {ONCE, BATCHES, RESUME, FEW},
    "timm ReaderWds": {ONCE, EVAL, BATCHES, RESUME, FEW},
    "Accelerate, dispatch_batches=True": {ONCE, SIZES, BATCHES},
    "Accelerate, dispatch_batches=False": {ONCE, SIZES, EVAL, BATCHES},
}

GOOD = Run([[[0, 1], [4]], [[2, 3], [5]]])
FAILED = Run([], "hangs")


# --- the judges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (GOOD, "yes"),
        (Run([[[3, 1], [4]], [[2, 0], [5]]]), "yes"),
        (Run([[[0, 1], [4]], [[2, 3]]]), "1 of 6 missing"),
        (Run([[[0, 1], [4]], [[2, 3], [5, 0]]]), "1 repeated"),
        (Run([[[0, 1], [1]], [[0, 0], [1]]]), "4 of 6 missing, 2 repeated"),
        (Run([[[0, 1], [4]], [[2, 3], [5, 6]]]), "1 that do not exist"),
        (Run([[], []]), "6 of 6 missing"),
        (FAILED, "hangs"),
    ],
)
def test_judge_once(run: Run, text: str):
    assert ex.judge_once(run, 6) == Verdict(text == "yes", text)


def test_judge_steps():
    assert ex.judge_steps(GOOD) == Verdict(True)
    assert ex.judge_steps(Run([[[0]], [[1], [2]], [[3]]])) == Verdict(False, "ranks make 1, 2 and 1 steps")
    assert ex.judge_steps(Run([[], []])) == Verdict(False, "ranks make 0 and 0 steps")
    assert ex.judge_steps(FAILED) == Verdict(False, "hangs")


def test_judge_sizes():
    assert ex.judge_sizes(GOOD) == Verdict(False, "from 2 to 4 samples")
    assert ex.judge_sizes(Run([[[0, 1], [4]], [[2], [3, 5]]])) == Verdict(True)
    assert ex.judge_sizes(Run([[[0, 1], [4]], [[2], [3]]])) == Verdict(True)
    assert ex.judge_sizes(FAILED) == Verdict(False, "hangs")


def test_judge_eval_says_unequal_steps_but_counts_samples():
    assert ex.judge_eval(GOOD, 6) == Verdict(True)
    assert ex.judge_eval(Run([[[0, 1], [2]], [[3]]]), 4) == Verdict(True, "yes, in 2 and 1 steps")
    assert ex.judge_eval(Run([[[0, 1], [2]], [[3]]]), 5) == Verdict(False, "1 of 5 missing, in 2 and 1 steps")
    assert ex.judge_eval(FAILED, 6) == Verdict(False, "hangs")


def test_judge_same_batches():
    alone = Run([[[3, 2, 1, 0], [5, 4]]])
    assert ex.judge_same_batches({1: alone, 2: GOOD}) == Verdict(True)
    swapped = Run([[[0, 1], [4]], [[2, 5], [3]]])
    assert ex.judge_same_batches({1: alone, 2: swapped}) == Verdict(False, "2 of 2 differ on 2 ranks")
    padded = Run([[[0, 1], [4]], [[2, 3], [5, 0]]])
    assert ex.judge_same_batches({1: alone, 2: padded}) == Verdict(False, "only the last of 2 differs on 2 ranks")
    longer = Run([[[0, 1], [4], [0]], [[2, 3], [5], [1]]])
    assert not ex.judge_same_batches({1: alone, 2: longer}).kept
    assert ex.judge_same_batches({1: alone, 2: FAILED}) == Verdict(False, "hangs")


def test_judge_resume():
    alone = Run([[[3, 2, 1, 0], [5, 4]]])
    full = {1: alone, 2: GOOD}
    good = {1: Run([[[4, 5]]]), 2: Run([[[4]], [[5]]])}
    assert ex.judge_resume(full, good, 1, 6) == Verdict(True)
    restarted = {1: alone, 2: GOOD}
    assert ex.judge_resume(full, restarted, 1, 6) == Verdict(False, "4 repeated on 1 and 2 ranks")
    skipping = {1: Run([[[4, 5]]]), 2: Run([[[4]], [[]]])}
    assert ex.judge_resume(full, skipping, 1, 6) == Verdict(False, "1 of 6 missing on 2 ranks")
    # an order that depends on the world size continues well at its own size only
    other = {1: alone, 2: Run([[[5, 4], [0]], [[3, 2], [1]]])}
    own = {1: Run([[[4, 5]]]), 2: Run([[[0]], [[1]]])}
    assert not ex.judge_resume(other, own, 1, 6).kept
    assert ex.judge_resume(full, dict.fromkeys((1, 2), Run([], "not offered")), 1, 6).text == "not offered"


def test_judge_resume_does_not_blame_it_for_padding():
    padded = {1: Run([[[3, 2, 1, 0], [4]]]), 2: Run([[[0, 1], [4]], [[2, 3], [0]]])}
    resumed = {1: Run([[[4]]]), 2: Run([[[4]], [[0]]])}
    verdict = ex.judge_resume(padded, resumed, 1, 5)
    assert verdict == Verdict(True, "yes, 1 repeated as without a stop on 2 ranks")
    worse = {1: Run([[[4]]]), 2: Run([[[4]], [[1, 0]]])}
    assert not ex.judge_resume(padded, worse, 1, 5).kept


def test_judge_few_shards():
    assert ex.judge_few_shards(GOOD, GOOD, 6) == Verdict(True)
    starved = Run([[[0, 1], [2, 3]], []])
    assert ex.judge_few_shards(starved, GOOD, 6) == Verdict(False, "ranks make 2 and 0 steps")
    assert ex.judge_few_shards(FAILED, GOOD, 6) == Verdict(False, "hangs")
    assert ex.judge_few_shards(GOOD, FAILED, 6) == Verdict(False, "trains; evaluation: hangs")
    assert ex.judge_few_shards(GOOD, GOOD, 7) == Verdict(True, "yes, but 1 of 7 missing")


def test_across_joins_what_is_the_same():
    bad = Verdict(False, "hangs")
    assert ex.across({1: Verdict(True), 2: bad, 3: bad}) == Verdict(False, "hangs on 2 and 3 ranks")
    assert ex.across({1: bad, 2: Verdict(False, "dies")}).text == "hangs on 1 rank; dies on 2 ranks"
    assert ex.across({1: Verdict(True), 2: Verdict(True, "yes, slowly")}).text == "yes, slowly on 2 ranks"
    assert ex.across({1: Verdict(True), 2: Verdict(True)}) == Verdict(True)


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exactness")
    ex.make_shards(folder)
    return folder


@pytest.fixture(scope="module")
def verdicts(shards: Path) -> dict[str, dict[str, Verdict]]:
    """Every stack on two ranks, and on one for what compares world sizes."""
    return {
        stack: ex.judge_stack({world: ex.run_stack(stack, world, shards) for world in (1, 2)}) for stack in ex.STACKS
    }


@pytest.mark.parametrize("check", ex.CHECKS)
def test_ours_keeps_every_promise(verdicts: dict[str, dict[str, Verdict]], check: str):
    assert verdicts[OURS][check] == Verdict(True, "yes")  # with no "but"


@pytest.mark.parametrize("check", ex.CHECKS)
@pytest.mark.parametrize("peer", FAILS)
def test_peers_fail_what_the_table_says(verdicts: dict[str, dict[str, Verdict]], peer: str, check: str):
    verdict = verdicts[peer][check]
    expected = check not in FAILS[peer]
    if verdict.kept and not expected:
        pytest.fail(
            f"{peer} now passes '{check}' ({verdict.text}). Good for its users: run tests/bench/exactness.py, "
            "correct the published table, then FAILS in this file."
        )
    assert verdict.kept == expected, f"{peer} no longer passes '{check}', which the table credits: {verdict.text}"


def test_every_stack_is_judged():
    assert set(FAILS) | {OURS} == set(ex.STACKS)


def test_processes_that_do_not_end_count_as_hanging(shards: Path):
    runs = ex.run_stack(OURS, 2, shards, timeout=0.0)
    assert runs["train"].problem == "hangs" and runs["eval"].problem == "not reached"
