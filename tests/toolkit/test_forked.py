"""Tests' own processes are what fresh ones are: what they are told, what they say, how they end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from forked import Late, run_forked
from toolkit_helpers import ROOT, clean_env, launch_2, run_python, run_script

#: Prints all that a program could tell a fresh interpreter by, in so far as tests rely on it.
TELLS = """
import atexit, logging, os, signal, sys
import torch
atexit.register(print, "the end")
print(sys.argv[1:], __name__, os.getcwd(), os.environ.get("RANK"), torch.get_num_threads())
print(sys.path[0] == os.path.dirname(os.path.abspath(__file__)))
print([path for path in sys.path[1:] if path.startswith(os.getcwd() + "/tests")])
print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), logging.getLogger().handlers)
print("said", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", [0, 75])
def test_a_script_sees_and_does_what_it_would_in_a_fresh_python(tmp_path: Path, status: int):
    (tmp_path / "tells.py").write_text(TELLS)
    forked, fresh = (run(tmp_path / "tells.py", status, "b") for run in (run_script, run_python))
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert str(ROOT) in forked.stdout and forked.stdout.endswith("the end\n") and forked.returncode == status


def test_a_failure_has_its_traceback_and_a_kill_its_signal(tmp_path: Path):
    (tmp_path / "fails.py").write_text("raise ValueError('on purpose')\n")
    failed = run_script(tmp_path / "fails.py")
    assert failed.returncode == 1 and "ValueError: on purpose" in failed.stderr
    (tmp_path / "dies.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert run_script(tmp_path / "dies.py").returncode == -signal.SIGKILL


def test_the_others_end_with_the_one_that_fails(tmp_path: Path):
    (tmp_path / "one.py").write_text(
        "import os, sys, time\n"
        "if os.environ['RANK'] == '0':\n    time.sleep(99)\n"
        "print('rank 1 of', os.environ['WORLD_SIZE'], flush=True)\nsys.exit(3)\n"
    )
    run = launch_2(tmp_path / "one.py")
    assert (run.returncode, run.stdout) == (3, "rank 1 of 2\n")


def test_one_that_hangs_says_where(tmp_path: Path):
    (tmp_path / "hangs.py").write_text(
        "import time\ndef stuck():\n    print('here', flush=True)\n    time.sleep(99)\nstuck()\n"
    )
    with pytest.raises(Late, match=r"took over 2 s(.|\n)*line 4 in stuck"):
        run_forked([tmp_path / "hangs.py"], [clean_env()], timeout=2)
