"""One, two and three processes give the same losses and weights, however an update is cut into parts.

Every two choices meet in some combination of `make test`; `make test-long` has all combinations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from probe_matrix import combinations, few, title
from toolkit_helpers import launch

PROBE = Path(__file__).resolve().parents[1] / "probe_matrix.py"


@pytest.fixture(scope="module")
def some(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By number of processes, a folder of results."""
    return trained("few", shard_set, tmp_path_factory)


@pytest.fixture(scope="module")
def every(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same of all combinations."""
    return trained("all", shard_set, tmp_path_factory)


def trained(which: str, shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    found = {}
    for processes in (1, 2, 3):
        out = tmp_path_factory.mktemp(f"matrix-{processes}")
        run = launch(processes, PROBE, shard_set, out, which, timeout=600)
        assert run.returncode == 0, run.stderr
        found[processes] = out
    return found


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("combination", few(), ids=title)
def test_processes_train_the_model_of_one(some: dict[int, Path], combination: dict[str, str], processes: int):
    compare(some, combination, processes)


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("combination", combinations(), ids=title)
def test_so_do_they_in_every_combination(every: dict[int, Path], combination: dict[str, str], processes: int):
    compare(every, combination, processes)


def compare(outs: dict[int, Path], combination: dict[str, str], processes: int) -> None:
    """So many processes learnt what one did."""
    alone, together = (read(outs[count], combination) for count in (1, processes))
    for key in ("losses", "train_loss"):
        assert together[key] == pytest.approx(alone[key], abs=1e-6, rel=1e-5), key  # CSVs have six digits
    assert alone["weights"].keys() == together["weights"].keys()
    for name, tensor in alone["weights"].items():
        assert not name.startswith(("module.", "_orig_mod."))
        torch.testing.assert_close(together["weights"][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.long
def test_combinations_are_other_trainings(every: dict[int, Path]):
    """Else the comparison would say little: mixing, sampling and what is left over each change the weights."""
    weights = [
        read(every[1], c)["weights"] for c in combinations() if c["accumulation"] == "1" and c["compile"] == "off"
    ]
    vectors = [torch.cat([tensor.flatten() for tensor in state.values()]) for state in weights]
    for number, one in enumerate(vectors):
        assert not any(torch.allclose(one, other, rtol=0, atol=1e-6) for other in vectors[:number])


def read(out: Path, combination: dict[str, str]) -> dict[str, Any]:
    """What a launch wrote of it."""
    found: dict[str, Any] = torch.load(out / f"{title(combination)}.pt", weights_only=True)
    return found
