"""What two real processes say to each other: votes on stopping."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit_helpers import launch_2

VOTE = Path(__file__).resolve().parents[1] / "probe_vote.py"


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
