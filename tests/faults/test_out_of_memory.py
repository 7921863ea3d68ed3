"""Out of memory: one line that says what did not fit and what would, and the run goes on from its checkpoint."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_tools import command, ended, train_options
from toolkit_helpers import weights_option
from torch import nn

import toolkit.model_folder.folder
from shards.errors import UserError
from toolkit.device.out_of_memory import explain_out_of_memory, is_out_of_memory

pytest_plugins = ("fault_fixtures",)

#: What the allocators of CUDA, the CPU, cuBLAS, Python and numpy say.
TEXTS: list[tuple[Exception, str]] = [
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15 GiB"),
        "out of memory (tried to allocate 2.00 GiB): less",
    ),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
        ),
        "out of memory (tried to allocate 4096 bytes): less",
    ),
    (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), "out of memory: less"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out of memory: less"),
    (MemoryError(), "out of memory: less"),
    (
        MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
        "out of memory (tried to allocate 7.45 GiB): less",
    ),
]


@pytest.mark.parametrize(("error", "line"), TEXTS)
def test_the_words_of_every_allocator_are_known(error: Exception, line: str):
    with pytest.raises(UserError) as caught, explain_out_of_memory(lambda: "less"):
        raise error
    assert str(caught.value) == line


def test_the_real_allocators_are_among_them():
    """More than any machine has: numpy's and torch's own words on this one."""
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as refused:
        bytearray(2**60)
    assert is_out_of_memory(refused.value)


def test_other_errors_stay_what_they_are():
    other = RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x3 and 4x4)")
    with pytest.raises(RuntimeError) as caught, explain_out_of_memory(lambda: "less"):
        raise other
    assert caught.value is other


@pytest.mark.parametrize("ranks", [1, 2])
def test_in_training(ranks: int, drawn_set: Path, tmp_path: Path):
    """What did not fit and the ways out are named, and they are some, from the checkpoint that is there."""
    first = train_options(drawn_set, tmp_path / "run")
    assert ended(first, tmp_path / "first", ranks).statuses == [0] * ranks
    rows = 8 // ranks
    tight, more = f"oom training {rows - 1}", ["--train.epochs=2", "--resume"]
    failed = ended(train_options(drawn_set, tmp_path / "run", *more), tmp_path / "second", ranks, tight)
    assert failed.statuses == [2] * ranks
    for words in (
        "out of memory (tried to allocate 2.00 GiB): ",
        f"a micro-batch of {rows} image(s) of 32 pixels does not fit",
        f"(global batch 8 = {ranks} process(es) x 1 accumulation x up to {rows})",
        "set --train.auto_batch true, --train.accumulation 2, --model.checkpointing true or a smaller --data.image",
        "with --resume the run continues from its newest checkpoint",
    ):
        assert words in failed.errors[0]
    for remedy in ("--train.auto_batch=true", "--train.accumulation=2"):
        run = shutil.copytree(tmp_path / "run", tmp_path / remedy)
        again = ended(train_options(drawn_set, run, *more, remedy), tmp_path / f"said{remedy}", ranks, tight)
        assert again.statuses == [0] * ranks, again.said


def test_when_the_system_really_refuses_memory(drawn_set: Path, tmp_path: Path):
    """The one that can be had without a GPU."""
    options = ["--train.batch_size=32", "--data.image_size=384", "--data.prefetch=1"]
    failed = ended(train_options(drawn_set, tmp_path / "run", *options), tmp_path / "first", 1, "memory 600")
    (line,) = failed.errors
    assert failed.statuses == [2] and "a micro-batch of 32 image(s) of 384 pixels does not fit" in line
    assert re.search(r"out of memory \(tried to allocate \d{7,} bytes\)", line)


def test_what_is_set_already_is_no_advice(drawn_set: Path, tmp_path: Path):
    options = ["--train.accumulation=8", "--model.checkpointing=true"]
    run = ended(train_options(drawn_set, tmp_path / "run", *options), tmp_path / "said", 1, "oom training 0")
    (line,) = run.errors
    assert (
        "a micro-batch of 1 image(s) of" in line
        and "set --train.auto_batch true or a smaller --data.image_size" in line
    )


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("validation", []),
        (
            "validation",
            ["--model.freeze=[backbone]", weights_option(), "--train.feature_views=1"],
        ),  # while features are computed
        ("training", ["--find-lr"]),
    ],
    ids=["validation", "features", "find-lr"],
)
def test_elsewhere_in_a_run(where: str, options: list[str], drawn_set: Path, tmp_path: Path):
    tight = f"oom {where} 7"
    (line,) = ended(train_options(drawn_set, tmp_path / "run", *options), tmp_path / "first", 1, tight).errors
    remedy, words = "--train.accumulation=2", "--train.accumulation 2"
    if where == "validation":
        remedy = "--train.eval_batch_size=4"
        words = "a forward pass of 16 images does not fit: set --train.eval_batch_size 8"
    assert "out of memory (tried to allocate 2.00 GiB): " in line and words in line
    again = ended(train_options(drawn_set, tmp_path / "again", *options, remedy), tmp_path / "second", 1, tight)
    assert again.statuses == [0], again.said


@pytest.mark.parametrize("where", ["training.run.build_setup", "training.trainer.save_checkpoint"])
def test_where_no_batch_is_at_fault(
    where: str, drawn_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Another process has the device: a smaller batch would not help, and nobody is told to set one."""

    def refused(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 98.00 MiB. Process 4711 has 79 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(f"toolkit.{where}", refused)
        status, line = command(train_options(drawn_set, tmp_path / "run"), capsys)
    assert status == 2 and "batch" not in line
    assert "out of memory (tried to allocate 98.00 MiB): posters train needs more memory than is available; end" in line
    again = train_options(drawn_set, tmp_path / "run", "--resume")
    assert command(again, capsys) == (0, "")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded models take at most eight images at a time."""
    build = toolkit.model_folder.folder.build_model

    def check(module: nn.Module, inputs: Any) -> None:
        if len(inputs[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def limited(*arguments: Any, **options: Any) -> nn.Module:
        model = build(*arguments, **options)
        model.register_forward_pre_hook(check)
        return model

    monkeypatch.setattr(toolkit.model_folder.folder, "build_model", limited)


@pytest.mark.parametrize("verb", ["evaluate", "tune", "predict", "predict a set"])
@pytest.mark.usefixtures("little_memory")
def test_in_a_forward_pass(
    verb: str,
    drawn_set: Path,
    drawn_posters: Path,
    fault_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    model = shutil.copytree(fault_model, tmp_path / "model")
    words: list[object] = [verb.split()[0], "--model", model]
    words += ["-d", drawn_posters / "images"] if verb == "predict" else ["--shards", drawn_set]
    words += ["--out", tmp_path / ("out.csv" if verb == "predict" else "out")] if "predict" in verb else []
    status, line = command([*words, "--batch-size", 16], capsys)
    wanted = "(tried to allocate 20.00 MiB): a forward pass of 16 images does not fit: set --batch-size 8"
    assert status == 2 and wanted in line
    status, line = command(words, capsys)
    assert status == 2 and "a forward pass of 32 images does not fit: set --batch-size 16" in line  # what a CPU takes
    assert command([*words, "--batch-size", 8], capsys) == (0, "")
