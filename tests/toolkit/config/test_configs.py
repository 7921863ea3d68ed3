"""The recipes in configs/: annotated, of models that exist, and run as they are written; and train.compile."""

from __future__ import annotations

import csv
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from toolkit_helpers import ROOT, parse_train, weights_option
from train_tools import TINY_VIT, tiny_config

from toolkit.config.io import config_dict
from toolkit.config.recipes import recipes as shipped
from toolkit.config.schema import Config
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.activation_checkpointing import enable_checkpointing
from toolkit.models.factory import build_model
from toolkit.models.freezing import Freezing
from toolkit.models.heads import HeadSpec
from toolkit.training.optim import build_optimizer
from toolkit.training.run import train, with_own_size

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
recipes = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)

#: All that a test's run does not take from a recipe, besides the model. Two epochs: what is frozen for one thaws.
SMALL = {
    "model.pretrained": False, "data.image_size": 32, "data.workers": 1, "train.epochs": 2, "train.precision": "no",
}  # fmt: skip


def read(path: Path, *options: str) -> Config:
    return parse_train(["--config", str(path), "--shards", "S", "--out", "R", *options]).config


def test_the_recipes_asked_for_are_there():
    names = {path.stem for path in RECIPES}
    wanted = {
        "poster_resnet50", "poster_resnet50_best", "poster_resnet50_gpus", "poster_convnext", "poster_vit_clip",
        "linear_probe",
    }  # fmt: skip
    assert wanted <= names


def test_eight_gpus_have_rows_enough_for_batchnorm_and_a_rate_for_all_of_them():
    recipe, reference = read(ROOT / "configs" / "poster_resnet50_gpus.yaml"), Config()
    launched = yaml.safe_load((ROOT / "launch" / "accelerate" / "gpus.yaml").read_text())
    rows = recipe.train.batch_size / recipe.train.accumulation / launched["num_processes"]
    assert rows >= 64 and recipe.train.precision == launched["mixed_precision"] == "bf16"
    times = recipe.train.batch_size / reference.train.batch_size
    assert recipe.optim.lr == pytest.approx(reference.optim.lr * math.sqrt(times), rel=0.02)
    assert recipe.optim.warmup_steps >= 100


@recipes
def test_every_key_has_its_why_above_it(path: Path):
    lines = path.read_text().splitlines()
    (name,) = [recipe.name for recipe in shipped() if recipe.path.name == path.name]
    assert lines[0].startswith(f"# {name}: ") and f"--config {name} " in "\n".join(lines[:4])
    keys = [number for number, line in enumerate(lines) if re.match(r"  \w+:", line)]
    assert len(keys) == sum(len(section) for section in yaml.safe_load(path.read_text()).values())
    for number in keys:
        assert lines[number - 1].startswith("  # "), f"{lines[number]} has no annotation"


@recipes
def test_the_named_model_is_built_frozen_and_optimised(path: Path):
    config = with_own_size(read(path))
    wanted, size = config.model, config.data.image_size
    with torch.device("meta"):  # shapes without numbers: the whole network in no time
        model = build_model(wanted.name, 19, HeadSpec.of(wanted), size, drop_path=wanted.drop_path)
        assert model.eval()(torch.empty(2, 3, size, size)).shape == (2, 19)
    Freezing(model, wanted.freeze)
    build_optimizer(model, config.optim)
    if wanted.checkpointing:
        enable_checkpointing(model)


def tiny_relative(name: str) -> str:
    """timm's test model of the same family, which is: from the same source file."""
    module = timm.model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2]
    return timm.list_models("test_*", module=module)[0]


@recipes
def test_a_small_run_of_all_else_that_it_says(path: Path, shard_set: Path, tmp_path: Path, one_thread: None):
    written = read(path)
    name = tiny_relative(written.model.name)
    weights = weights_option(name).partition("=")[2]  # frozen backbones must have some
    changed: dict[str, Any] = {**SMALL, "model.name": name, "model.weights": weights}
    options = [f"--{key}={value if isinstance(value, str) else str(value).lower()}" for key, value in changed.items()]
    assert train(read(path, *options), shard_set, tmp_path / "run") == 0
    with open(tmp_path / "run" / "epochs.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 and int(rows[0]["update"]) >= 1
    assert all(math.isfinite(float(row[f"{split}_loss"])) for row in rows for split in ("train", "val"))
    assert load_model_folder(tmp_path / "run" / "model").config["architecture"] == changed["model.name"]
    expected = config_dict(written)
    for key, value in changed.items():
        section, _, name = key.partition(".")
        expected[section][name] = value
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == expected


@pytest.mark.long  # test_wrapping.py has two compiled processes
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler here"
)
def test_a_compiled_model_learns_the_same_and_is_saved_plain(shard_set: Path, tmp_path: Path, one_thread: None):
    from torch._dynamo.utils import counters  # loads the compiler, which takes seconds

    options = [*TINY_VIT, "--model.freeze=[]", "--train.batch_size=64", "--train.epochs=1", "--train.ema=0.9"]
    graphs, weights = {}, {}
    for compiled in ("false", "true"):
        counters.clear()
        out = tmp_path / compiled
        assert train(tiny_config(*options, f"--train.compile={compiled}"), shard_set, out) == 0
        graphs[compiled] = counters["stats"]["unique_graphs"], bool(counters["inductor"])
        weights[compiled] = load_file(out / "model" / "model.safetensors")
    assert graphs["false"] == (0, False) and graphs["true"][0] >= 1 and graphs["true"][1]
    # To the name: nothing of the wrapper is saved. Other kernels round otherwise.
    torch.testing.assert_close(weights["true"], weights["false"], rtol=1e-3, atol=1e-4)
    (path,) = (tmp_path / "true" / "checkpoints").glob("*/state.pt")
    kept = torch.load(path, weights_only=True)
    assert set(kept["model"]) == set(kept["ema"]) == set(weights["false"])
    load_model_folder(tmp_path / "true" / "model")
