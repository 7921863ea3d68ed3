"""What several test files of the toolkit share: running the commands for real, making a model folder."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import timm
import torch
from forked import run_forked
from safetensors.torch import save_file

from shards.dataset.index import read_index, write_index
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.cli.commands import read
from toolkit.cli.train import TrainOptions
from toolkit.config.io import config_dict
from toolkit.config.schema import Config
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.decisions.decisions import Decisions
from toolkit.model_folder.folder import save_model_folder
from toolkit.models.factory import build_model, clean_state
from toolkit.models.heads import HeadSpec

ROOT = Path(__file__).resolve().parents[2]
CPU_2 = ROOT / "launch" / "accelerate" / "cpu_2.yaml"

#: Options that make a run small: a model of a few hundred thousand weights on 32-pixel inputs. Of the drawn set's 56
#: training samples an update has 18 or 19, which leaves two processes enough rows for BatchNorm. Choosing decisions by
#: cross-fitting would take as long as an epoch: tests of them ask for it.
TINY = [
    "--model.name=test_resnet",
    "--model.pretrained=false",
    "--model.hidden=[8]",
    "--data.image_size=32",
    "--data.workers=1",
    "--train.batch_size=20",
    "--train.eval_batch_size=16",
    "--train.trackers={}",
    "--decide.thresholds=global",
    "--decide.calibration=none",
]
#: The default of those two.
CHOSEN = ["--decide.thresholds=auto", "--decide.calibration=auto"]


@functools.cache
def weights_option(name: str = "test_resnet") -> str:
    """``--model.weights=FILE`` of a backbone without a head: what a frozen backbone must have, trained or not."""
    folder = Path(tempfile.mkdtemp(prefix="posters-test-weights-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    save_file(clean_state(timm.create_model(name, num_classes=0)), folder / f"{name}.safetensors")
    return f"--model.weights={folder / name}.safetensors"


def make_model_folder(
    folder: Path,
    labels: LabelSet,
    head: HeadSpec,
    size: int = 32,
    name: str = "test_resnet",
    decisions: Decisions | None = None,
    fit: str = "crop",
) -> Path:
    torch.manual_seed(0)
    model = build_model(name, len(labels), head, size)
    save_model_folder(
        folder,
        model,
        head,
        labels,
        decisions or Decisions.plain(np.full(len(labels), 0.5), "none: untrained"),
        Preprocessing(size, 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), fit),
        {"epoch": 0, "shard_set": "none"},
        {},
    )
    return folder


def with_threshold(decisions: Decisions, threshold: float) -> Decisions:
    """The same calibration with one threshold for every genre."""
    return replace(decisions, thresholds=np.full_like(decisions.thresholds, threshold))


def some_decisions(num_genres: int) -> Decisions:
    """Calibrated, with other thresholds for every genre, near an untrained model's probabilities."""
    return Decisions(
        np.linspace(0.35, 0.65, num_genres),
        np.linspace(0.5, 2.0, num_genres),
        np.linspace(0.3, -0.3, num_genres),
        0.45,
        "f1",
        "platt",
        "for a test",
        {"split": "val", "samples": 18},
    )


def reverse_labels(folder: Path, split: str) -> None:
    """Give every sample of a split another one's labels, in the indexes and in what is made of them."""
    manifest = Manifest.read(folder)
    for shard in manifest.of_split(split):
        table, facts = read_index(folder / shard.name)
        column = table.schema.get_field_index("labels")
        field = table.schema.field(column)
        labels = pa.array(table["labels"].to_pylist()[::-1], field.type)
        write_index(folder / shard.name, table.set_column(column, field, labels), facts)
    manifest.write_tables(folder)
    manifest.write(folder)


def posters_command(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run ``posters ...`` in a process of its own."""
    return run_forked(["-m", "toolkit", *arguments], [clean_env()], timeout)


def run_script(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    return run_forked(arguments, [clean_env()], timeout)


def launch(processes: int, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script in so many processes that meet over gloo, with what `accelerate launch` tells them."""
    shared = {
        **clean_env(), "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return run_forked(arguments, ranks, timeout)


def launch_2(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """``launch`` of two."""
    return launch(2, *arguments, timeout=timeout)


def accelerate_launch(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """accelerate's own launcher, with two CPU processes (gloo) on a free port."""
    return run_python(
        "-m", "accelerate.commands.launch", "--config_file", CPU_2, "--main_process_port", free_port(), *arguments,
        timeout=timeout,
    )  # fmt: skip


def run_python(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a fresh Python. If it takes longer, the test fails with where each of its processes was."""
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=clean_env()
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{command} took over {timeout:.0f} s\n{_last_words(process)}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _last_words(process: subprocess.Popen[str]) -> str:
    """End a process and all below it (a launcher's are in sessions of their own); what they said, with tracebacks."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGABRT)  # clean_env's PYTHONFAULTHANDLER makes a traceback of it
    _, alive = psutil.wait_procs(family, timeout=10)
    for member in alive:
        member.kill()
    return process.communicate()[1]


def parse_train(words: Sequence[str]) -> TrainOptions:
    """What `posters train` with these words is asked for."""
    found: TrainOptions = read(["train", *words])[1]
    return found


def config_keys() -> list[str]:
    """Every dotted key, e.g. ``optim.lr``."""
    return [f"{section}.{key}" for section, values in config_dict(Config()).items() for key in values]


def clean_env() -> dict[str, str]:
    """This process's environment without what a launcher or test runner left in it; the project importable."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    env["PYTHONPATH"] = str(ROOT)
    env["PYTHONFAULTHANDLER"] = "1"
    env["OMP_NUM_THREADS"] = "1"  # the same arithmetic at any number of processes
    return env


def free_port() -> int:
    """A port that nobody listens at, below those that systems give to whoever asks for any (Linux: from 32768).

    One of those could be some connection's by the time that torch is loaded and listens.
    """
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("", port))
            return port


def error_lines(run: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of stderr that begin with ``error:``; there must be no traceback of ours beside them."""
    assert "Traceback" not in run.stderr, run.stderr
    return [line for line in run.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
