"""Automatic batch size: the right accumulation, the same for all ranks, and nothing else touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from failing import fails
from probe_memory import limit_rows
from toolkit_helpers import TINY, launch_2, run_script, weights_option
from torch import nn
from train_tools import make_parts, make_updates, state_of, tiny_config

from shards.errors import UserError
from toolkit.training.auto_batch import fit_accumulation
from toolkit.training.train_step import TrainStep

pytestmark = pytest.mark.usefixtures("one_thread")
PROBE = Path(__file__).resolve().parents[1] / "probe_memory.py"


def fit(shard_set: Path, out: Path, limit: int, *options: str) -> int:
    """The accumulation found for a global batch of 14, which the set's 56 samples fill."""
    parts = make_parts(shard_set, tiny_config("--train.batch_size=14", *options), out)[1]
    limit_rows(parts.model, limit)
    return fit_accumulation(parts)


@pytest.mark.parametrize(
    ("limit", "options", "expected"),
    [
        (14, [], 1),
        (13, [], 2),
        (7, [], 2),
        (6, [], 4),
        (2, [], 8),
        (3, ["--train.accumulation=3"], 6),
        (3, ["--augment.mixup=0.5"], 8),  # pairs stay together: four rows, then two
    ],
)
def test_the_least_that_fits(shard_set: Path, tmp_path: Path, limit: int, options: list[str], expected: int):
    assert fit(shard_set, tmp_path, limit, *options) == expected


def test_nothing_fits_is_one_line(shard_set: Path, tmp_path: Path):
    with fails("out-of-memory", "test_resnet", "32 pixels"):
        fit(shard_set, tmp_path, 1)


def test_the_cpu_allocators_words_are_known_and_other_errors_are_not_taken_for_them(shard_set: Path, tmp_path: Path):
    for message, caught in (
        ("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried", UserError),
        ("mat1 and mat2 shapes cannot be multiplied", RuntimeError),
    ):
        parts = make_parts(shard_set, tiny_config(), tmp_path)[1]

        def fail(*_: object, message: str = message) -> None:
            raise RuntimeError(message)

        parts.model.register_forward_pre_hook(fail)
        with pytest.raises(caught):
            fit_accumulation(parts)


def test_everything_is_as_it_was(shard_set: Path, tmp_path: Path):
    parts = make_parts(shard_set, tiny_config("--model.freeze=[stem, layer1@2]"), tmp_path)[1]
    limit_rows(parts.model, 5)
    seen: list[Any] = []
    parts.model.register_forward_pre_hook(lambda module, _: seen.append(trains(module)))
    before, flags, generator = state_of(parts.model), trains(parts.model), torch.get_rng_state()
    fit_accumulation(parts)
    assert all(torch.equal(value, before[name]) for name, value in parts.model.state_dict().items())
    assert all(p.grad is None for p in parts.model.parameters())
    assert trains(parts.model) == flags and torch.equal(torch.get_rng_state(), generator)
    assert not parts.optimizer.state
    # What thaws later was tried too, what never does was not.
    assert seen and all(tried["layer1.0.conv1.weight"] and not tried["conv1.0.weight"] for tried in seen)
    assert not flags["layer1.0.conv1.weight"]


def trains(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def test_the_rest_of_a_run_is_set_aside(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    empty = torch.empty

    def watched(*size: Any, **options: Any) -> torch.Tensor:
        if options.get("dtype") is torch.uint8:
            sizes.append(size[0])
        return empty(*size, **options)

    monkeypatch.setattr("toolkit.training.auto_batch.torch.empty", watched)
    parts = make_parts(shard_set, tiny_config("--model.freeze=[]"), tmp_path)[1]
    plan = parts.plan
    fit_accumulation(parts)
    weights = sum(p.numel() for p in parts.model.parameters())
    assert sizes[-1] == pytest.approx(8 * weights, rel=0.01)  # Adam's two averages
    parts.freezing.training_mode(parts.model, 0)
    make_updates(TrainStep(parts), plan, 1, 0.001)
    fit_accumulation(parts)
    assert sizes[-1] == 0  # they are there now


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_is_that_of_the_explicit_accumulation(shard_set: Path, tmp_path: Path, processes: int):
    run = run_script if processes == 1 else launch_2
    base = ["--shards", shard_set, *TINY, "--train.epochs=1", "--train.auto_batch=true", weights_option()]
    # In two processes rank 1 has less memory than rank 0: both take its need.
    limits, accumulation = ("5", 4) if processes == 1 else ("10,3", 4)
    found = run(PROBE, limits, *base, "--out", tmp_path / "found")
    assert found.returncode == 0, found.stderr
    assert f"automatic batch size: accumulation {accumulation} (1 configured)" in found.stderr
    told = run("launch/train.py", *base, "--out", tmp_path / "told", "--train.auto_batch=false",
               f"--train.accumulation={accumulation}")  # fmt: skip
    assert told.returncode == 0, told.stderr
    ours, theirs = (
        torch.load(next((tmp_path / name / "checkpoints").iterdir()) / "state.pt", weights_only=True)["model"]
        for name in ("found", "told")
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_two_processes_of_which_one_fits_nothing_end_with_one_line(shard_set: Path, tmp_path: Path):
    options = ["--shards", shard_set, *TINY, "--train.auto_batch=true", "--out", tmp_path / "run"]
    run = launch_2(PROBE, "8,1", *options)
    assert run.returncode != 0
    ours = [line for line in run.stderr.splitlines() if "does not fit in memory" in line]
    assert ours and "OutOfMemoryError" not in run.stderr
