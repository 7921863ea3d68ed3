"""The promises of toolkit/data/sampling/plan.py, and the peers that do not make them, judged alike in real processes.

A check that every stack passes says little about ours, so the peers are negative controls: each fails here what the
table of tests/bench/exactness.py says that it fails, and passes what the table credits it with.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toolkit_helpers import run_script

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # no package, like all tests

import exactness as ex
from exact import STACKS
from exact import judge as jd
from exact.judge import CHECKS, Run, Verdict
from peers import status_of

ONCE, STEPS, SIZES, EVAL, BATCHES, RESUME, ELASTIC, FEW = CHECKS
OURS = "poster-toolkit"

#: What each peer fails on one and two ranks, as the table says; everything else it passes.
FAILS = {
    "MosaicML Streaming": {ONCE, SIZES, EVAL, BATCHES},
    "LitData": {ONCE, BATCHES},
    "Grain, DataLoader": {ONCE, SIZES, EVAL, BATCHES, ELASTIC},
    "Grain, ElasticIterator": {ONCE},
    "Megatron-Energon": {STEPS, SIZES},
    "torchdata StatefulDataLoader, DistributedSampler": {ONCE, SIZES, EVAL, BATCHES, ELASTIC},
    "torchdata StatefulDataLoader, iterable": {STEPS, SIZES, ELASTIC},
    "Hugging Face datasets, streaming": {STEPS, SIZES, RESUME, ELASTIC},
    "Hugging Face datasets, map style": {STEPS, SIZES, BATCHES, RESUME, ELASTIC},
    "Accelerate, dispatch_batches=True": {ONCE, SIZES, BATCHES},
    "Accelerate, dispatch_batches=False": {ONCE, SIZES, EVAL, BATCHES},
    "WebDataset, split_by_node": {STEPS, SIZES, BATCHES, RESUME, ELASTIC, FEW},
    "WebDataset, resampled": {ONCE, BATCHES, RESUME, ELASTIC, FEW},
    "timm ReaderWds": {ONCE, EVAL, BATCHES, RESUME, ELASTIC, FEW},
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
    assert jd.judge_once(run, 6) == Verdict(text == "yes", text)


def test_judge_steps():
    assert jd.judge_steps(GOOD) == Verdict(True)
    assert jd.judge_steps(Run([[[0]], [[1], [2]], [[3]]])) == Verdict(False, "ranks make 1, 2 and 1 steps")
    assert jd.judge_steps(Run([[], []])) == Verdict(False, "ranks make 0 and 0 steps")
    assert jd.judge_steps(FAILED) == Verdict(False, "hangs")


def test_judge_sizes():
    assert jd.judge_sizes(GOOD) == Verdict(False, "from 2 to 4 samples")
    assert jd.judge_sizes(Run([[[0, 1], [4]], [[2], [3, 5]]])) == Verdict(True)
    assert jd.judge_sizes(Run([[[0, 1], [4]], [[2], [3]]])) == Verdict(True)
    assert jd.judge_sizes(FAILED) == Verdict(False, "hangs")


def test_judge_eval_says_unequal_steps_but_counts_samples():
    assert jd.judge_eval(GOOD, 6) == Verdict(True)
    assert jd.judge_eval(Run([[[0, 1], [2]], [[3]]]), 4) == Verdict(True, "yes, in 2 and 1 steps")
    assert jd.judge_eval(Run([[[0, 1], [2]], [[3]]]), 5) == Verdict(False, "1 of 5 missing, in 2 and 1 steps")
    assert jd.judge_eval(FAILED, 6) == Verdict(False, "hangs")


def test_judge_same_batches():
    alone = Run([[[3, 2, 1, 0], [5, 4]]])
    assert jd.judge_same_batches({1: alone, 2: GOOD}) == Verdict(True)
    swapped = Run([[[0, 1], [4]], [[2, 5], [3]]])
    assert jd.judge_same_batches({1: alone, 2: swapped}) == Verdict(False, "2 of 2 differ on 2 ranks")
    padded = Run([[[0, 1], [4]], [[2, 3], [5, 0]]])
    assert jd.judge_same_batches({1: alone, 2: padded}) == Verdict(False, "only the last of 2 differs on 2 ranks")
    longer = Run([[[0, 1], [4], [0]], [[2, 3], [5], [1]]])
    assert not jd.judge_same_batches({1: alone, 2: longer}).kept
    assert jd.judge_same_batches({1: alone, 2: FAILED}) == Verdict(False, "hangs")


def test_judge_resume():
    alone = Run([[[3, 2, 1, 0], [5, 4]]])
    full = {1: alone, 2: GOOD}
    good = {1: Run([[[4, 5]]]), 2: Run([[[4]], [[5]]])}
    every = [(stopped, world) for stopped in full for world in full]
    assert jd.judge_resume(full, {pair: good[pair[1]] for pair in every}, 1, 6) == Verdict(True)
    restarted = {pair: full[pair[1]] for pair in every}
    text = "4 repeated on 1 and 2 ranks; 4 repeated from 1→2 and 2→1 ranks"
    assert jd.judge_resume(full, restarted, 1, 6) == Verdict(False, text)
    skipping = {(1, 2): Run([[[4]], [[]]]), (2, 1): good[1]}
    assert jd.judge_resume(full, skipping, 1, 6) == Verdict(False, "1 of 6 missing from 1→2 ranks")
    # an order that depends on the world size continues well at its own size only
    other = {1: alone, 2: Run([[[5, 4], [0]], [[3, 2], [1]]])}
    own = {1: Run([[[4, 5]]]), 2: Run([[[0]], [[1]]])}
    assert jd.judge_resume(other, {(1, 1): own[1], (2, 2): own[2]}, 1, 6).kept
    assert not jd.judge_resume(other, {(1, 2): own[2]}, 1, 6).kept
    assert jd.judge_resume(full, dict.fromkeys(every, Run([], "not offered")), 1, 6).text == "not offered"
    assert jd.judge_resume({1: FAILED, 2: GOOD}, {(1, 2): good[2]}, 1, 6) == Verdict(False, "hangs from 1→2 ranks")


def test_judge_resume_does_not_blame_it_for_padding():
    padded = {1: Run([[[3, 2, 1, 0], [4]]]), 2: Run([[[0, 1], [4]], [[2, 3], [0]]])}
    resumed = {(1, 1): Run([[[4]]]), (2, 2): Run([[[4]], [[0]]])}
    verdict = jd.judge_resume(padded, resumed, 1, 5)
    assert verdict == Verdict(True, "yes, 1 repeated as without a stop on 2 ranks")
    worse = {(1, 1): Run([[[4]]]), (1, 2): Run([[[4]], [[1, 0]]])}
    assert not jd.judge_resume(padded, worse, 1, 5).kept


def test_judge_few_shards():
    assert jd.judge_few_shards(GOOD, GOOD, 6) == Verdict(True)
    starved = Run([[[0, 1], [2, 3]], []])
    assert jd.judge_few_shards(starved, GOOD, 6) == Verdict(False, "ranks make 2 and 0 steps")
    assert jd.judge_few_shards(FAILED, GOOD, 6) == Verdict(False, "hangs")
    assert jd.judge_few_shards(GOOD, FAILED, 6) == Verdict(False, "trains; evaluation: hangs")
    assert jd.judge_few_shards(GOOD, GOOD, 7) == Verdict(True, "yes, but 1 of 7 missing")


def test_across_joins_what_is_the_same():
    bad = Verdict(False, "hangs")
    assert jd.across({1: Verdict(True), 2: bad, 3: bad}) == Verdict(False, "hangs on 2 and 3 ranks")
    assert jd.across({1: bad, 2: Verdict(False, "dies")}).text == "hangs on 1 rank; dies on 2 ranks"
    assert jd.across({1: Verdict(True), 2: Verdict(True, "yes, slowly")}).text == "yes, slowly on 2 ranks"
    assert jd.across({1: Verdict(True), 2: Verdict(True)}) == Verdict(True)


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exactness")
    ex.make_shards(folder)
    return folder


@pytest.fixture(scope="module")
def verdicts(shards: Path) -> Callable[[str], dict[str, Verdict]]:
    """Stack → its verdicts on one and two ranks."""
    return functools.cache(lambda stack: jd.judge_stack(ex.run_stack(stack, (1, 2), shards)[0]))


def with_venv(stack: str) -> object:
    """A stack that needs a venv of its own takes half a minute."""
    return pytest.param(stack, marks=pytest.mark.long) if STACKS[stack].peer else stack


@pytest.mark.parametrize("check", CHECKS)
def test_ours_keeps_every_promise(verdicts: Callable[[str], dict[str, Verdict]], check: str):
    assert verdicts(OURS)[check] == Verdict(True, "yes")  # with no "but"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("peer", [with_venv(peer) for peer in FAILS])
def test_peers_fail_what_the_table_says(verdicts: Callable[[str], dict[str, Verdict]], peer: str, check: str):
    if (venv := STACKS[peer].peer) and not status_of(venv)["ok"]:
        pytest.skip(status_of(venv)["reason"])
    verdict = verdicts(peer)[check]
    expected = check not in FAILS[peer]
    if verdict.kept and not expected:
        pytest.fail(
            f"{peer} now passes '{check}' ({verdict.text}). Good for its users: run tests/bench/exactness.py, "
            "correct the published table, then FAILS in this file."
        )
    assert verdict.kept == expected, f"{peer} no longer passes '{check}', which the table credits: {verdict.text}"


def test_every_stack_is_judged():
    assert set(FAILS) | {OURS} == set(STACKS)


def test_processes_that_do_not_end_count_as_hanging(shards: Path):
    runs, _ = ex.run_stack("timm ReaderWds", (2,), shards, timeout=0.0)
    assert runs[2]["train"].problem == "hangs" and runs[2]["eval"].problem == "not reached"


def test_a_stack_that_cannot_convert_says_why(shards: Path):
    runs, _ = ex.run_stack(OURS, (1, 2), shards / "none")
    assert all("FileNotFoundError" in run.problem for jobs in runs.values() for run in jobs.values())


def test_a_peer_that_is_not_installed_is_a_row_that_says_so(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ex, "status_of", lambda name: {"ok": False, "reason": f"not installed ({name})"})
    row = ex.measure("LitData", shards)
    assert not row.verdicts and row.missing == "not installed (litdata)"
    table = ex.markdown({"LitData": row})
    assert table.splitlines()[-1] == f"| LitData | not installed (litdata) |{' - |' * len(CHECKS)}"


def test_a_word_that_names_no_stack_is_refused_in_one_line():
    run = run_script("tests/bench/exactness.py", "--stacks", "nonsense")
    assert run.returncode == 2 and run.stderr.startswith("error: --stacks") and run.stderr.count("\n") == 1
