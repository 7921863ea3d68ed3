"""What two real processes say to each other: gradients of what thawed under DDP, votes on stopping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from toolkit_helpers import launch_2
from torch import nn

from toolkit.distributed import rewrap

PROBE = Path(__file__).with_name("probe_rewrap.py")
VOTE = PROBE.with_name("probe_vote.py")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_rewrapping(precision: str):
    run = launch_2(PROBE, precision)
    assert run.returncode == 0, run.stderr
    seen = [json.loads(part.splitlines()[0]) for part in run.stdout.split("SAW ")[1:]]
    assert len(seen) == 2
    for saw in seen:
        assert saw.pop("known models") == 1
        assert saw.pop("wrapped") == saw.pop("still wrapped") == "DistributedDataParallel"
        assert all(saw.values()), saw


def test_a_model_without_a_wrapper_is_left_alone():
    model = nn.Linear(1, 1)
    accelerator = Accelerator(cpu=True)
    assert rewrap(accelerator, accelerator.prepare_model(model)) is model


def test_a_vote_on_stopping_does_not_wait():
    """It is read at the next call, on both alike; with ``now`` at once; and one that never comes in holds up no end."""
    run = launch_2(VOTE)
    assert run.returncode == 0, run.stderr
    first, late = sorted(
        (json.loads(part.splitlines()[0]) for part in run.stdout.split("SAW ")[1:]), key=lambda saw: -len(saw)
    )
    assert first["waited"] < 1.5, "the first process waited for the one that votes 3 seconds later"
    for saw in (first, late):
        assert saw["answers"] == [False, False, True] and not saw["pending"] and saw["now"]
    assert first["left after"] < 20
