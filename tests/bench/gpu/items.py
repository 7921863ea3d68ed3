"""What gpu_check.py runs, in order of worth: each item has steps, and each step is a program of tests/bench.

Standard library only, as gpu_check.py starts before the wheels are unpacked.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study_recipes import recipes

ROOT = Path(__file__).resolve().parents[3]
BENCH = ROOT / "tests" / "bench"


@dataclass(frozen=True)
class Setting:
    """Where things are, and how large the check is."""

    work: Path
    facts: dict[str, Any]
    weights: Path | None
    tiny: bool

    @property
    def gpu(self) -> bool:
        return bool(self.facts["gpus"])

    @property
    def model(self) -> list[str]:
        """A network, a batch and a size: the real ones, or tiny ones."""
        return ["test_resnet", "8", "32"] if self.tiny else ["resnet50", "256", "224"]


@dataclass(frozen=True)
class Step:
    """One run of a program, which writes its figures to a file."""

    name: str
    command: list[str]
    figures: Path
    left_out: str = ""
    """Why it cannot run here, if it cannot."""


@dataclass(frozen=True)
class Item:
    """Steps that belong together."""

    name: str
    what: str
    seconds: float
    """Its limit. Less if less is left of all."""
    steps: Callable[[Setting], Sequence[Step]] = field(repr=False)


def bench(setting: Setting, name: str, program: str, *options: object, left_out: str = "") -> Step:
    """A step that runs a program of this folder with ``--json``."""
    figures = setting.work / "figures" / f"{name}.json"
    command = [sys.executable, str(BENCH / program), *map(str, options), "--json", str(figures)]
    return Step(name, command, figures, left_out)


def gpu_tests(setting: Setting) -> list[Step]:
    """The tests that are marked ``gpu``. Only their files are collected, as others import more packages."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in path.read_text()]
    report = setting.work / "figures" / "tests.xml"
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}"]
    return [Step("tests", [sys.executable, "-m", "pytest", *options, *map(str, files)], report)]


def training(setting: Setting) -> list[Step]:
    """Ours beside the resident batch, on posters of two sizes, with several numbers of threads."""
    if setting.tiny:
        return [train_step(setting, "48 pixels", 48, "--threads=1,2")]
    many = min(16, setting.facts["cores"])
    threads = ",".join(map(str, [0, *(number for number in (2, 4, 8, 16) if number <= many)]))
    return [train_step(setting, f"{side} pixels", side, f"--threads={threads}") for side in (182, 256)]


def train_step(setting: Setting, name: str, side: int, *options: str, left_out: str = "") -> Step:
    """A step that measures training."""
    model, batch, size = setting.model
    large = ("--steps=1", "--rounds=1", "--precision=no") if setting.tiny else ("--steps=10", "--rounds=3")
    return bench(
        setting, name, "train_step.py", "--shards", setting.work / "shards", "--sides", side, "--model", model,
        "--batch", batch, "--size", size, *large, *options, left_out=left_out,
    )  # fmt: skip


def prediction(setting: Setting) -> list[Step]:
    """Ours beside the forward pass, decoding and timm, on 30,000 images, with a profile."""
    name = "60 images" if setting.tiny else "30000 images"
    return [predict(setting, name, "forward,decode,ours_shards,timm", 30, "--profile")]


def predict(setting: Setting, name: str, stacks: str, repeat: int, *options: str, left_out: str = "") -> Step:
    """A step that measures batch prediction of 1,000 posters, each ``repeat`` times."""
    model, _, size = setting.model
    large = ("--samples=30", "--batch=16") if setting.tiny else ("--samples=1000", "--precision=bf16")
    return bench(
        setting, name, "predict.py", "--images", setting.work / "posters" / "images", "--architecture", model,
        "--size", size, "--work", setting.work / "predict", "--rounds", 3, "--stacks", stacks,
        "--repeat", 2 if setting.tiny else repeat, *large, *options, left_out=left_out,
    )  # fmt: skip


def study(setting: Setting) -> list[Step]:
    """The rows of the study whose backbone learns, then the frozen ones beside them."""
    learning = [row.name for row in recipes(fine_tune=True) if "fine-tuned" in row.name]
    names = {"fine-tuned": learning, "fine-tuned and frozen": ["reference", "best", *learning]}
    posters, out = setting.work / "posters", setting.work / "study"
    tiny = ["model.name=test_resnet", "data.image_size=32", "train.epochs=2", "train.batch_size=16", "model.hidden=[8]"]
    reason = "" if setting.weights else "--data has no weights (a .safetensors file)"
    return [
        Step(
            name,
            [
                sys.executable, str(BENCH / "study.py"), "--metadata", str(posters / "metadata.csv"),
                "--images", str(posters / "images"), "--weights", str(setting.weights), "--out", str(out),
                "--fine-tune", "--only", *rows, *(["--precision", "no", "--override", *tiny] if setting.tiny else []),
            ],
            out / "study.json",
            reason,
        )
        for name, rows in list(names.items())[: 1 if setting.tiny else 2]
    ]  # fmt: skip


def crews(setting: Setting) -> list[Step]:
    """A forward pass that is fed by decoding threads, and by decoding processes."""
    reason = "" if setting.gpu and not setting.tiny else "a test of its own runs it on a CPU"
    images = setting.work / "posters" / "images"
    options = ["--images", images, "--sets=stored", "--rounds=3", "--seconds=0.5", "--work", setting.work / "crews"]
    return [bench(setting, "threads and processes", "decode_processes.py", *options, left_out=reason)]


def precisions(setting: Setting) -> list[Step]:
    """fp16 and torch.compile; bf16 is in the items above."""
    no_fp16 = "" if setting.gpu else "fp16 needs a GPU"
    no_compiling = "" if setting.gpu else "torch.compile takes minutes on a CPU"
    stacks = "forward,ours_shards"
    return [
        predict(setting, "predict fp16", stacks, 10, "--precision=fp16", left_out=no_fp16),
        train_step(setting, "train fp16", 182, "--precision=fp16", left_out=no_fp16),
        predict(setting, "predict compiled", stacks, 10, "--compile", left_out=no_compiling),
        train_step(setting, "train compiled", 182, "--compile", left_out=no_compiling),
    ]


def text(setting: Setting) -> list[Step]:
    """Text detection, on the GPU if onnxruntime can use it."""
    reason = "" if setting.facts["rapidocr"] else "rapidocr is not installed"
    if setting.gpu and not setting.facts["text_on_gpu"]:
        reason = reason or "this onnxruntime cannot use a GPU (onnxruntime-gpu can)"
    size = ("--samples=1", "--rounds=1") if setting.tiny else ("--samples=20", "--rounds=2")
    device = f"--device={'cuda' if setting.gpu else 'cpu'}"
    images = setting.work / "posters" / "images"
    return [bench(setting, "text detection", "text_detection.py", "--images", images, *size, device, left_out=reason)]


def processes(setting: Setting) -> list[Step]:
    """Two processes beside one, over gloo on one GPU, and over NCCL on two."""
    few = f"NCCL needs two GPUs, and there are {setting.facts['gpus']}" if setting.facts["gpus"] < 2 else ""
    shards = ["--shards", setting.work / "shards", *([] if setting.tiny else ["--batch", 200])]
    return [
        bench(setting, "gloo", "two_processes.py", *shards),
        bench(setting, "nccl", "two_processes.py", *shards, "--backend=nccl", left_out=few),
    ]


ITEMS = (
    Item("tests", "tests that need a GPU", 100, gpu_tests),
    Item("train", "training beside a resident batch", 170, training),
    Item("predict", "batch prediction beside its limits and timm", 240, prediction),
    Item("study", "recipes whose backbone learns", 150, study),
    Item("crews", "decoding threads beside decoding processes", 100, crews),
    Item("precision", "fp16 and torch.compile", 150, precisions),
    Item("text", "text detection", 60, text),
    Item("processes", "two processes", 90, processes),
)


def read_tests(report: Path) -> dict[str, Any]:
    """Test → passed, failed or skipped, from pytest's report."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        state = next((name for name in ("failure", "error", "skipped") if case.find(name) is not None), "passed")
        name = re.sub(r"^tests\.", "", f"{case.get('classname')}::{case.get('name')}")
        found[name] = {"failure": "failed", "error": "failed"}.get(state, state)
    counts = {state: list(found.values()).count(state) for state in ("passed", "failed", "skipped")}
    return {**counts, "tests": found}
