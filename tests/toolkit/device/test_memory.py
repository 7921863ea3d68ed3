"""Freed memory stays: counted in pages that the system had to map, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from toolkit_helpers import ROOT, clean_env

from toolkit.device.allocator import SETTINGS

FAULTS = """
import resource, sys, torch
from accelerate import Accelerator
from toolkit.distributed.collectives import make_accelerator
from toolkit.device.allocator import keep_freed_memory
if sys.argv[1] == "accelerator":
    make_accelerator()
elif sys.argv[1] == "asked":
    print("kept", keep_freed_memory())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
series = []
for _ in range(5):  # the fewest: the system may take pages away for reasons of its own
    before = faults()
    for _ in range(10):
        torch.ones(100_000_000, dtype=torch.uint8)
    series.append(faults() - before)
print("faults", min(series))
"""


def run(how: str, **settings: str) -> tuple[int, str]:
    """(pages mapped for ten times the same 100 MB, what was printed)."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        capture_output=True, text=True, cwd=ROOT, env=clean_env() | settings, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("faults")[1]), done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.long
def test_what_is_freed_stays_with_the_process() -> None:
    usual, _ = run("not")
    if usual < 1000:
        pytest.skip("this system's allocator keeps freed memory by itself")
    kept, said = run("asked")
    assert "kept True" in said and kept < usual / 5
    assert run("accelerator")[0] < usual / 5  # every command that computes asks for it
    refused, said = run("asked", **{SETTINGS[0]: "65536"})
    assert "kept False" in said and refused > usual / 2  # the user's own setting stands
