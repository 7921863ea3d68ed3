"""The scale pages and the files of launch/: each file is named, each named file exists, each command parses."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from fake_slurm import SBATCH, options
from launch_tools import ROOT, UPDATES, free_port, newest_step, options_of, run_python
from toolkit_helpers import make_model_folder, parse_train
from torch.distributed.run import get_args_parser

from shards.dataset.manifest import Manifest
from shards.errors import UserError
from toolkit.cli.commands import read
from toolkit.cli.main import main
from toolkit.models.heads import HeadSpec

pytest_plugins = ("launch_fixtures",)

PAGES = ROOT / "docs" / "scale"
TEXTS = {path.name: path.read_text() for path in sorted(PAGES.glob("*.md"))}
FILES = sorted(path for kind in ("accelerate", "slurm") for path in (ROOT / "launch" / kind).iterdir())
BLOCKS = [block for text in TEXTS.values() for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)]
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
#: Commands of launchers and of this project, without the variables before them.
COMMANDS = [
    bare
    for line in LINES
    if (bare := re.sub(r"^([A-Z_]+=\S+ )+", "", line)).startswith(("accelerate ", "torchrun ", "sbatch ", "posters "))
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_explained(path: Path):
    name = f"{path.parent.name}/{path.name}"
    assert any(f"[`{name}`](../../launch/{name})" in text for text in TEXTS.values())


@pytest.mark.parametrize("page", TEXTS)
def test_every_named_file_exists(page: str):
    """Files in code and in text. The links of all pages are checked elsewhere."""
    names = set(re.findall(r"(?<![\w/-])(?:launch|tests|configs|toolkit)/[\w./]*\w", TEXTS[page]))
    assert names
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:60])
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch):
    """Each launcher, and then the training, takes its options."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if words[0] == "posters":
        script, rest = f"launch/{words[1]}.py", words[2:]
        if words[1] != "train":
            read(words[1:])
            return
    elif words[:2] == ["accelerate", "launch"]:
        parsed = launch_command_parser().parse_args(words[2:])
        assert parsed.config_file is None or Path(parsed.config_file).exists()
        script, rest = parsed.training_script, parsed.training_script_args
    elif words[0] == "torchrun":
        elastic = get_args_parser().parse_args(words[1:])
        script, rest = elastic.training_script, elastic.training_script_args
    else:
        _, (job, script, *rest) = options(words[1:], SBATCH)
        assert Path(job).exists()
    if script == "toolkit":  # -m toolkit train, for an installation without a checkout
        script, rest = f"launch/{rest[0]}.py", rest[1:]
    assert Path(script).exists()
    if script == "launch/train.py" and "-m toolkit" in command:
        parse_train(rest)
    elif script == "launch/train.py":
        train = parse_train(rest)
        assert train.resume == (words[0] == "torchrun" or "preemptible" in command)
    else:
        read([Path(script).stem, *rest])


def test_the_pages_show_every_way_to_start():
    shown = " ".join(COMMANDS)
    assert all(path.name in shown for path in FILES if path.name != "task.sh")


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name == "slurm"], ids=lambda path: path.name)
def test_scripts_are_scripts(path: Path):
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr
    assert path.read_text().startswith("#!/bin/bash\n# ") and "set -euo pipefail" in path.read_text()
    assert path.suffix == ".sbatch" or path.stat().st_mode & 0o111  # srun runs it; sbatch reads a job


@pytest.mark.long
def test_the_config_for_one_gpu_trains(launch_set: Path, tmp_path: Path):
    """On the CPU where there is no GPU; the other configs are used by the tests of several processes."""
    config = ROOT / "launch" / "accelerate" / "one_gpu.yaml"
    options = options_of(launch_set, tmp_path / "run")
    run = run_python("-m", "accelerate.commands.launch", "--config_file", config, "launch/train.py", *options)
    assert run.returncode == 0 and "1 process(es)" in run.stderr, run.stderr
    assert newest_step(tmp_path / "run") == UPDATES


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("script", ["train", pytest.param("predict", marks=pytest.mark.long)])
def test_a_config_for_gpus_is_refused_where_there_are_none(script: str, launch_set: Path, tmp_path: Path):
    """In one line of the first process, the launcher's report aside."""
    config = ROOT / "launch" / "accelerate" / "gpus.yaml"
    words = options_of(launch_set, tmp_path / "run")
    if script == "predict":
        model = make_model_folder(tmp_path / "model", Manifest.read(launch_set).labels, HeadSpec("linear", (), 0.0))
        words = ["--shards", str(launch_set), "--out", str(tmp_path / "run"), "--model", str(model)]
    run = run_python(
        "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", 2, "--main_process_port",
        free_port(), f"launch/{script}.py", *words,
    )  # fmt: skip
    assert run.returncode == 1 and "exitcode  : 2" in run.stderr, run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len([line for line in lines if "[rank" not in line]) == 1
    assert "torch finds no GPU" in lines[0] and "launch/accelerate/cpu_2.yaml" in lines[0]
    assert "Traceback" not in run.stderr.partition("error: ")[0] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_what_the_pages_say_is_refused(kind: str, launch_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As accelerate's launcher tells it to the processes."""
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match=f"configured to use {kind}: use a config with distributed_type MULTI_GPU"):
        main(["train", *options_of(launch_set, tmp_path / "run")])
    assert not (tmp_path / "run").exists()
