"""Weights spread over two processes (train.fsdp): the same training, the same files, half of the memory."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import signal
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from failing import fails
from probe_fsdp import Run
from safetensors.torch import load_file
from toolkit_helpers import free_port, launch_2
from torch import nn
from train_tools import TINY_VIT, tiny_config

from shards.errors import UserError
from toolkit.config.validation import SHARDABLE
from toolkit.distributed.fsdp import MIN_UNIT_SHARE, is_sharded, shard_model, units, uses_fsdp
from toolkit.model_folder.folder import load_model_folder
from toolkit.training.run import train

PROBE = Path(__file__).resolve().parents[1] / "probe_fsdp.py"

#: All that meets spread weights, on a network in which samples do not meet: the same at any number of processes.
EVERYTHING = [
    *TINY_VIT, "--model.freeze=[]", "--optim.name=adamw", "--optim.lr=0.001", "--optim.weight_decay=0.05",
    "--optim.layer_decay=0.8", "--optim.head_lr=2", "--optim.clip_norm=1", "--train.accumulation=2",
    "--train.ema=0.9", "--train.epochs=2", "--train.keep_checkpoints=9",
]  # fmt: skip
#: BatchNorm, what never learns and what thaws, dropout and stochastic depth, bfloat16 and recomputation.
RESNET = [
    "--model.freeze=[stem, layer1@1]", "--model.checkpointing=true", "--model.drop_path=0.1", "--optim.name=sgd",
    "--optim.lr=0.05", "--train.precision=bf16", "--train.epochs=2",
    "--train.keep_checkpoints=9",
]  # fmt: skip
SKIP = [*TINY_VIT, "--model.freeze=[]", "--train.on_nonfinite=skip", "--train.epochs=1"]
FSDP = "--train.fsdp=true"
STEPS = 3


class Runs:
    """The runs of this module's launch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seen(self, name: str, rank: int, run: int = -1) -> dict[str, Any]:
        """What the spy of the last run there saw, or of the first (0)."""
        lines = (self.folder / name / f"rank{rank}.jsonl").read_text().splitlines()
        seen: dict[str, Any] = json.loads(lines[run])
        return seen

    def checkpoint(self, name: str, update: int = 2 * STEPS) -> dict[str, Any]:
        path = self.folder / name / "checkpoints" / f"step-{update:08d}" / "state.pt"
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model" / "model.safetensors")

    def epochs(self, name: str) -> list[dict[str, str]]:
        with open(self.folder / name / "epochs.csv") as stream:
            return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def runs(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of two processes, in one launch: starting torch takes longer than any of them.

    The processes make some 60 process groups one after the other, which no user does. Once in dozens of launches, a
    thread of gloo aborted one of them. Such a launch is made once more. A second abort fails the tests.
    """
    status, said, folder = _launch(shard_set, tmp_path_factory.mktemp("fsdp"))
    if status == -signal.SIGABRT:
        warnings.warn(f"a process was aborted: {said[-2000:]}", stacklevel=1)
        status, said, folder = _launch(shard_set, tmp_path_factory.mktemp("fsdp"))
    assert status == 0, said
    return Runs(folder)


def _launch(shard_set: Path, folder: Path) -> tuple[int, str, Path]:
    """Make all runs below ``folder``. Return the exit status, standard error and ``folder``."""
    plan: list[Run] = []

    def add(name: str, options: list[str], **more: Any) -> None:
        plan.append(Run(str(folder / name), options, free_port(), **more))

    for name, options in (("everything", EVERYTHING), ("resnet", RESNET)):
        add(f"{name}-ddp", options, contiguous=True)
        add(f"{name}-fsdp", [*options, FSDP])
    add("stopped-fsdp", [*EVERYTHING, FSDP], term=2)
    add("stopped-fsdp", [*EVERYTHING, FSDP], resume=True)
    add("to-one", [*EVERYTHING, FSDP], term=2)
    add("from-ddp", EVERYTHING, term=STEPS + 1)
    add("from-ddp", [*EVERYTHING, FSDP], resume=True)
    add("validates-first", [*RESNET, FSDP], term=STEPS - 1)
    add("validates-first", [*RESNET, FSDP], resume=True)
    for name, more in (("skip-ddp", []), ("skip-fsdp", [FSDP])):
        add(name, [*SKIP, *more], bad_loss=2, bad_gradient=3)
    for name in SHARDABLE:
        options = [*TINY_VIT, "--model.freeze=[]", "--train.epochs=1", f"--optim.name={name}"]
        add(f"{name}-ddp", options)
        add(f"{name}-fsdp", [*options, FSDP])
    add("stray", [*TINY_VIT, "--model.freeze=[]", "--train.epochs=1", "--optim.name=adam", FSDP], stray=True)
    add("stop-fsdp", [*SKIP, "--train.on_nonfinite=stop", FSDP], bad_gradient=3)
    (folder / "plan.json").write_text(json.dumps([dataclasses.asdict(run) for run in plan]))
    launched = launch_2(PROBE, shard_set, folder / "plan.json")
    return launched.returncode, launched.stderr, folder


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Sums of gradients are rounded in another order; Adam's first updates make much of that."""
    assert theirs  # nothing would equal nothing
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Of checkpoints: to the bit, weights and all else."""
    assert theirs["model"] and theirs["optimizer"]["state"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# --- the same training ------------------------------------------------------------------------------------------------


def test_spread_weights_learn_what_whole_ones_do(runs: Runs):
    ours, theirs = runs.checkpoint("everything-fsdp"), runs.checkpoint("everything-ddp")
    assert_close(ours["model"], theirs["model"])
    assert_close(ours["ema"], theirs["ema"])
    assert_close(runs.weights("everything-fsdp"), runs.weights("everything-ddp"))
    for mine, other in zip(runs.epochs("everything-fsdp"), runs.epochs("everything-ddp"), strict=True):
        for column in ("train_loss", "val_loss", "lr"):
            assert float(mine[column]) == pytest.approx(float(other[column]), rel=1e-3), column


def test_without_clipping_and_accumulation_even_the_bits_are_the_same(runs: Runs):
    """Two processes' halves are summed alike; statistics of BatchNorm included, which are the first process's."""
    assert_same(runs.checkpoint("resnet-fsdp"), runs.checkpoint("resnet-ddp"))
    assert runs.weights("resnet-fsdp").keys() == runs.weights("resnet-ddp").keys()


@pytest.mark.parametrize("name", SHARDABLE)
def test_optimisers_make_the_same_updates_of_parts(runs: Runs, name: str):
    """Lamb looks at whole tensors, whose norms are then sums of other parts."""
    ours, theirs = (runs.checkpoint(f"{name}-{kind}", STEPS)["model"] for kind in ("fsdp", "ddp"))
    torch.testing.assert_close(ours, dict(theirs), rtol=1e-5, atol=1e-6)


def test_the_main_process_has_the_first_weights(runs: Runs):
    assert_same(runs.checkpoint("stray", STEPS), runs.checkpoint("adam-fsdp", STEPS))


@pytest.mark.parametrize("name", ["everything", "resnet"])
def test_every_update_has_the_samples_that_it_always_has(runs: Runs, name: str):
    for rank in (0, 1):
        samples = runs.seen(f"{name}-fsdp", rank)["samples"]
        assert samples == runs.seen(f"{name}-ddp", rank)["samples"] and len(samples) == 2 * STEPS


def test_each_process_holds_half(runs: Runs):
    """Bytes of weights and of the optimiser's state, of which a matrix with an odd number of rows is cut unevenly."""
    for what in ("parameters", "optimizer"):
        whole = runs.seen("everything-ddp", 0)[what]
        parts = [runs.seen("everything-fsdp", rank)[what] for rank in (0, 1)]
        assert sum(parts) == whole and all(0.45 * whole < part < 0.55 * whole for part in parts)


# --- checkpoints and models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["everything", "resnet"])
def test_a_checkpoint_is_like_that_of_whole_weights(runs: Runs, name: str):
    """To the name, the shape and the type, so that either goes on from either."""

    def shape(tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            assert type(tree) is torch.Tensor
            return tree.shape, tree.dtype
        if isinstance(tree, dict):
            return {name: shape(value) for name, value in tree.items()}
        return [shape(value) for value in tree] if isinstance(tree, list) else tree

    ours, theirs = shape(runs.checkpoint(f"{name}-fsdp")), shape(runs.checkpoint(f"{name}-ddp"))
    assert ours == theirs and ours["optimizer"]["state"]


@pytest.mark.parametrize(("name", "judged"), [("everything", "ema"), ("resnet", "model")])
def test_the_model_folder_holds_what_was_gathered(runs: Runs, name: str, judged: str):
    folder = load_model_folder(runs.folder / f"{name}-fsdp" / "model")
    epoch = folder.config["poster_toolkit"]["epoch"]
    state = runs.checkpoint(f"{name}-fsdp", epoch * STEPS)[judged]
    saved = folder.model.state_dict()
    assert saved.keys() == state.keys() and all(torch.equal(saved[key], state[key]) for key in saved)


def test_stopped_by_a_signal_and_resumed_gives_the_same_bits(runs: Runs):
    for rank in (0, 1):  # rank 0 was told
        assert [runs.seen("stopped-fsdp", rank, run)["status"] for run in (0, -1)] == [75, 0]
        assert list(runs.seen("stopped-fsdp", rank, 0)["samples"]) == ["1", "2", "3"]
    assert_same(runs.checkpoint("stopped-fsdp"), runs.checkpoint("everything-fsdp"))


def test_resumed_before_a_validation_it_trains_on_to_the_same_bits(runs: Runs):
    """The first forward passes are then those of the validation, which asks for no gradients."""
    assert len(runs.seen("validates-first", 0, 0)["samples"]) == STEPS
    assert_same(runs.checkpoint("validates-first"), runs.checkpoint("resnet-fsdp"))


def test_whole_weights_go_on_spread(runs: Runs):
    ours, theirs = runs.checkpoint("from-ddp"), runs.checkpoint("everything-ddp")
    assert_close(ours["model"], theirs["model"])
    assert_close(ours["ema"], theirs["ema"])


def test_spread_weights_go_on_whole_in_one_process(runs: Runs, shard_set: Path, tmp_path: Path, one_thread: None):
    shutil.copytree(runs.folder / "to-one", tmp_path / "run")
    assert train(tiny_config(*EVERYTHING), shard_set, tmp_path / "run", resume=True) == 0
    alone = Runs(tmp_path).checkpoint("run")
    whole = runs.checkpoint("everything-ddp")
    assert_close(alone["model"], whole["model"])
    assert_close(alone["ema"], whole["ema"])


def test_one_process_has_nothing_to_spread(shard_set: Path, tmp_path: Path, one_thread: None):
    for name, more in (("plain", []), ("fsdp", [FSDP])):
        options = ["--model.freeze=[stem]", "--train.epochs=1", *more]
        assert train(tiny_config(*options), shard_set, tmp_path / name) == 0
    plain, fsdp = (tmp_path / name / "model" / "model.safetensors" for name in ("plain", "fsdp"))
    assert fsdp.read_bytes() == plain.read_bytes()


# --- numbers that are none --------------------------------------------------------------------------------------------


def test_what_is_not_finite_on_one_rank_is_skipped_by_all(runs: Runs):
    """A loss in update 2, an element of one rank's part of the gradient in update 3."""
    assert [row["skipped_updates"] for row in runs.epochs("skip-fsdp")] == ["2"]
    ours, theirs = runs.checkpoint("skip-fsdp", STEPS), runs.checkpoint("skip-ddp", STEPS)
    assert_close(ours["model"], theirs["model"])
    assert ours["optimizer"]["state"][0]["step"] == STEPS - 2


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(runs: Runs):
    for rank in (0, 1):
        status = runs.seen("stop-fsdp", rank)["status"]
        assert status.startswith("error: the gradient is not finite at epoch 1, step 3")
    assert not (runs.folder / "stop-fsdp" / "checkpoints").exists()


# --- what is spread, and what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("vit_large_patch16_224", {"Block": 24}),
        ("eva_giant_patch14_224", {"EvaBlock": 40}),
        # Blocks with less than a hundredth of the weights are gathered with the rest of their stage.
        ("swin_base_patch4_window7_224", {"SwinTransformerBlock": 20, "SwinTransformerStage": 2}),
        ("convnext_base", {"ConvNeXtBlock": 30, "ConvNeXtStage": 1, "Conv2d": 1}),
        ("regnety_160", {"Bottleneck": 16}),  # in no list: blocks of one class side by side
    ],
)
def test_blocks_of_timm_are_units(name: str, kinds: dict[str, int]):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    found = units(model)
    assert Counter(type(unit).__name__ for unit in found) == kinds and len(found) <= 1 / MIN_UNIT_SHARE
    inside = {id(p) for unit in found for p in unit.parameters()}
    whole = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in model.parameters() if id(p) not in inside) < 0.05 * whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--train.auto_batch=true"], "--train.accumulation"),
        (["--train.compile=true"], "train.compile"),
        (["--train.feature_views=2", "--model.freeze=[backbone]"], "train.feature_views"),
        (["--optim.name=lars"], "use adam, adamw, nadamw, lion, lamb or sgd"),
    ],
)
def test_what_does_not_go_with_it_is_told_in_a_line(options: list[str], words: str):
    with pytest.raises(UserError) as caught:
        tiny_config(FSDP, *options)
    message = str(caught.value)
    assert message.startswith("train.fsdp cannot be combined with") and words in message and "\n" not in message
    tiny_config(*options)  # alone it is good


def test_a_gradient_scaler_is_refused():
    accelerator: Any = SimpleNamespace(mixed_precision="fp16", num_processes=2)
    with fails("option-conflict", "train.fsdp", "--train.precision bf16 or no"):
        uses_fsdp(accelerator, tiny_config(FSDP))
    assert not uses_fsdp(accelerator, tiny_config())


def test_weights_that_are_single_numbers_are_refused_by_name():
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    with fails("model-unfit", "train.fsdp", "scale of Sequential"):
        shard_model(accelerator, model)
    assert not is_sharded(model)
