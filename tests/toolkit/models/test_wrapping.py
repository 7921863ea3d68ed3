"""A model that is compiled, in DDP or both: the same training, the same names in its files, and it can resume."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import timm
import torch
from accelerate import Accelerator
from failing import fails
from probe_fsdp import Run
from safetensors.torch import load_file, save_file
from timm.layers import convert_sync_batchnorm
from toolkit_helpers import free_port, launch_2, weights_option
from torch import nn
from train_tools import tiny_config

from shards.errors import UserError
from shards.storage.files import sha256_file
from toolkit.config.schema import TrainConfig
from toolkit.model_folder.folder import WEIGHTS, load_model_folder
from toolkit.models.tensor_files import plain_names
from toolkit.models.wrapping import check_synced, plain, rewrap, wrap
from toolkit.training.checkpoints.checkpoint import newest_checkpoint
from toolkit.training.run import train

PROBE = Path(__file__).resolve().parents[1] / "probe_fsdp.py"
REWRAP = Path(__file__).resolve().parents[1] / "probe_rewrap.py"

COMPILED = "--train.compile=true"
#: Updates of an epoch.
STEPS = 3
SGD = ["--optim.name=sgd", "--optim.lr=0.05", "--train.epochs=2"]
#: BatchNorm (held: the micro-batches are small), what thaws, what never learns, accumulation and the moving average.
EVERYTHING = [
    weights_option(), "--model.freeze=[stem, layer1@1]", "--train.accumulation=2", "--train.ema=0.9", *SGD,
]  # fmt: skip
#: A head on cached features, with its moving average.
FEATURES = ["--model.freeze=[backbone]", "--train.feature_views=2", "--train.ema=0.9", *SGD]
#: Before and after the thaw.
STOPS = [("everything", 2), ("everything", STEPS + 2), ("features", 2)]
#: Passes that differ in what they use, as far as any of ours do: members, left-out branches, recomputation.
GRAPHS = {
    "thaw": ["--model.freeze=[stem, layer1@1]", *SGD],
    "ensemble": ["--model.head=ensemble", "--model.members=5", "--model.freeze=[]", *SGD],
    "left out": ["--model.drop_path=0.3", "--model.checkpointing=true", *SGD],
}


class Runs:
    """The runs of this module's launch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def last(self, name: str) -> dict[str, Any]:
        """The tensors of its newest checkpoint."""
        path = sorted((self.folder / name / "checkpoints").glob("step-*"))[-1]
        state: dict[str, Any] = torch.load(path / "state.pt", weights_only=True)
        return state

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model" / WEIGHTS)


@pytest.fixture(scope="module")
def runs(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of two processes, in one launch: starting torch takes longer than any of them."""
    folder = tmp_path_factory.mktemp("wrapped")
    plan: list[Run] = []

    def add(name: str, options: list[str], **more: Any) -> None:
        plan.append(Run(str(folder / name), options, free_port(), backend="eager", **more))

    for name, options in (("everything", EVERYTHING), ("features", [weights_option(), *FEATURES])):
        add(name, options)
        add(f"{name} compiled", [*options, COMPILED])
    for name, update in STOPS:
        options = EVERYTHING if name == "everything" else [weights_option(), *FEATURES]
        add(f"{name} stopped {update}", [*options, COMPILED], term=update)
        add(f"{name} stopped {update}", [*options, COMPILED], resume=True)
    for name, options in GRAPHS.items():
        add(name, options)
        add(f"{name} plain DDP", options, plain_ddp=True)
    add("synced", ["--train.sync_batchnorm=true"])
    (folder / "plan.json").write_text(json.dumps([dataclasses.asdict(run) for run in plan]))
    launched = launch_2(PROBE, shard_set, folder / "plan.json", timeout=900)
    assert launched.returncode == 0, launched.stderr
    return Runs(folder)


# --- compiled on two processes ----------------------------------------------------------------------------------------


@pytest.mark.long  # a launch of two minutes
@pytest.mark.parametrize("name", ["everything", "features"])
def test_compiled_on_two_processes_learns_the_same_under_the_same_names(runs: Runs, name: str):
    ours, theirs = runs.last(f"{name} compiled"), runs.last(name)
    for part in ("model", "ema"):
        assert theirs[part]
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=1e-6)
    torch.testing.assert_close(runs.weights(f"{name} compiled"), runs.weights(name), rtol=0, atol=1e-6)
    load_model_folder(runs.folder / f"{name} compiled" / "model")


@pytest.mark.long  # a launch of two minutes
@pytest.mark.parametrize(("name", "update"), STOPS)
def test_compiled_on_two_processes_resumes_to_the_bit(runs: Runs, name: str, update: int):
    stopped = f"{name} stopped {update}"
    for rank in (0, 1):
        lines = (runs.folder / stopped / f"rank{rank}.jsonl").read_text().splitlines()
        assert [json.loads(line)["status"] for line in lines] == [75, 0]
    ours, theirs = runs.last(stopped), runs.last(f"{name} compiled")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert runs.weights(stopped).keys() == runs.weights(name).keys()


@pytest.mark.long  # a launch of two minutes
@pytest.mark.parametrize("name", ["everything", "features"])
def test_a_checkpoint_under_the_compilers_names_is_resumed(
    runs: Runs, name: str, shard_set: Path, tmp_path: Path, one_thread: None
):
    """As earlier versions wrote it on several processes, on which they could not go on from it."""
    out = tmp_path / "run"
    shutil.copytree(runs.folder / f"{name} compiled", out)
    first, last = sorted((out / "checkpoints").glob("step-*"))
    shutil.rmtree(last)
    tensors = torch.load(first / "state.pt", weights_only=True)
    tensors["model"] = {f"_orig_mod.{key}": value for key, value in tensors["model"].items()}
    torch.save(tensors, first / "state.pt")
    facts = json.loads((first / "state.json").read_text())
    (first / "state.json").write_text(json.dumps({**facts, "sha256": sha256_file(first / "state.pt")}))
    options = EVERYTHING if name == "everything" else [weights_option(), *FEATURES]
    assert train(tiny_config(*options), shard_set, out, resume=True) == 0
    found = newest_checkpoint(out / "checkpoints")
    assert found is not None and found.progress.epoch == 2
    assert found.tensors["model"].keys() == runs.last(name)["model"].keys()


# --- DDP's settings ---------------------------------------------------------------------------------------------------


@pytest.mark.long  # a launch of two minutes
@pytest.mark.parametrize("name", GRAPHS)
def test_ddps_settings_change_no_bit(runs: Runs, name: str):
    torch.testing.assert_close(runs.last(name), runs.last(f"{name} plain DDP"), rtol=0, atol=0)
    seen, without = (
        json.loads((runs.folder / which / "rank0.jsonl").read_text())["ddp"] for which in (name, f"{name} plain DDP")
    )
    assert seen == {"gradient_as_bucket_view": True, "static_graph": True}
    assert without == {"gradient_as_bucket_view": False, "static_graph": False}


@pytest.mark.long  # a launch of two minutes
def test_the_graph_is_not_static_where_torch_does_not_bear_it(runs: Runs):
    for name in ("everything", "everything compiled", "features compiled"):
        seen = json.loads((runs.folder / name / "rank0.jsonl").read_text())["ddp"]
        assert seen == {"gradient_as_bucket_view": True, "static_graph": False}


# --- wrapping, one by one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "kind"), [("no", "eager"), ("bf16", "eager"), ("no", "compiled")])
def test_rewrapping(precision: str, kind: str):
    """Gradients of what thawed are reduced, and the old wrapper is gone."""
    run = launch_2(REWRAP, precision, kind)
    assert run.returncode == 0, run.stderr
    seen = [json.loads(part.splitlines()[0]) for part in run.stdout.split("SAW ")[1:]]
    assert len(seen) == 2
    for saw in seen:
        assert saw.pop("wrapped") == saw.pop("still wrapped") == "DistributedDataParallel"
        assert saw.pop("within") == ("OptimizedModule" if kind == "compiled" else "VisionTransformer")
        assert all(saw.values()), saw


def test_a_model_without_a_wrapper_is_left_alone():
    model, accelerator = nn.Linear(1, 1), Accelerator(cpu=True)
    assert rewrap(accelerator, wrap(accelerator, model, TrainConfig()), TrainConfig()) is model


def test_the_plain_model_is_found_in_any_nesting():
    model, compiler = nn.Linear(1, 1), cast("Any", torch.compile)
    compiled = compiler(model)
    for wrapped in (model, compiled, nn.DataParallel(compiled), compiler(nn.DataParallel(model))):
        assert plain(wrapped) is model
    assert plain(compiler(nn.DataParallel(compiled))) is model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("module._orig_mod.fc.weight", "fc.weight"),
        ("_orig_mod.module.fc.weight", "fc.weight"),
        ("layer1._orig_mod.0.weight", "layer1.0.weight"),
        ("layer1.module.0.weight", "layer1.module.0.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
    ],
)
def test_names_of_the_plain_model(name: str, expected: str):
    assert plain_names({name: 1}) == {expected: 1}


def test_two_tensors_never_become_one():
    state = {"fc.weight": 1, "module.fc.weight": 2}
    assert plain_names(state) == state


def test_a_model_folder_under_wrappers_names_is_loaded(model_folder: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    state = load_file(folder / WEIGHTS)
    save_file({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    config["poster_toolkit"]["weights_sha256"] = sha256_file(folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(dict(load_model_folder(folder).model.state_dict()), state, rtol=0, atol=0)


# --- BatchNorm over processes -----------------------------------------------------------------------------------------


@pytest.mark.long  # a launch of two minutes
def test_statistics_over_processes_are_refused_on_cpus(runs: Runs):
    for rank in (0, 1):
        said = json.loads((runs.folder / "synced" / f"rank{rank}.jsonl").read_text())["status"]
        assert said.startswith("error: ") and "train.sync_batchnorm needs GPUs" in said and "\n" not in said


def test_one_process_needs_none(shard_set: Path, tmp_path: Path, one_thread: None):
    options = ["--train.epochs=1", "--model.freeze=[]"]
    for name in ("false", "true"):
        config = tiny_config(*options, f"--train.sync_batchnorm={name}")
        assert train(config, shard_set, tmp_path / name) == 0
    ours, theirs = (load_file(tmp_path / name / "model" / WEIGHTS) for name in ("true", "false"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_statistics_over_processes_do_not_go_with():
    gpus: Any = SimpleNamespace(num_processes=8, device=torch.device("cuda"))
    assert check_synced(gpus, tiny_config("--train.sync_batchnorm=true"))
    assert not check_synced(gpus, tiny_config())
    for key in ("train.auto_batch", "train.compile"):
        with fails("option-conflict", "train.sync_batchnorm", key):
            check_synced(gpus, tiny_config("--train.sync_batchnorm=true", f"--{key}=true"))
    with pytest.raises(UserError, match=r"train\.fsdp cannot be combined with train\.sync_batchnorm"):
        tiny_config("--train.sync_batchnorm=true", "--train.fsdp=true")


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet"])
def test_converted_layers_keep_weights_names_and_activations(name: str):
    torch.manual_seed(0)
    model, pixels = timm.create_model(name, num_classes=3).eval(), torch.randn(2, 3, 32, 32)
    names, parameters, expected = list(model.state_dict()), list(model.parameters()), model(pixels)
    model = convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert list(model.state_dict()) == names
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(pixels), expected, rtol=0, atol=0)
