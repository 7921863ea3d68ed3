"""Checkpoints, folders and lists of classes that `posters import` refuses, each in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from failing import fails
from import_timm_tools import NAMES, classes_file, network, train_checkpoint
from safetensors.torch import save_file
from timm.models import save_for_hf
from toolkit_helpers import error_lines, posters_command

from toolkit.cli.main import main
from toolkit.model_folder.folder import load_model_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def refused(checkpoint: Path, *options: object) -> list[str]:
    return ["import", "--checkpoint", str(checkpoint), "--out", str(checkpoint.parent / "m"), *map(str, options)]


def test_what_is_missing_or_wrong_is_said(tmp_path: Path):
    made = network()
    state, classes = made.state_dict(), classes_file(tmp_path)
    bare, named = tmp_path / "w.safetensors", ["--model-name", "test_resnet"]
    save_file(state, bare)
    with fails("option-missing", bare, "does not name its architecture", "--model-name resnet50"):
        main(refused(bare, "--classes", classes))
    with fails("option-missing", bare, "does not name its classes", "--classes FILE"):
        main(refused(bare, *named))
    with fails("model-unknown", "--model-name", "test_resnest", "did you mean", "test_resnet"):
        main(refused(bare, "--model-name", "test_resnest", "--classes", classes))
    with fails("model-unfit", bare, "does not fit timm's resnet18: it lacks ", "--model-name"):
        main(refused(bare, "--model-name", "resnet18", "--classes", classes))
    with fails("path-missing", tmp_path / "none.txt"):
        main(refused(bare, *named, "--classes", tmp_path / "none.txt"))
    with fails("path-missing", tmp_path / "none.safetensors"):
        main(refused(tmp_path / "none.safetensors", "--classes", classes))
    save_file({name: value for name, value in state.items() if name != "fc.bias"}, tmp_path / "less.safetensors")
    with fails("model-unfit", "less.safetensors", "lacks 1 tensors, e.g. 'fc.bias'"):
        main(refused(tmp_path / "less.safetensors", *named, "--classes", classes))
    save_file({**state, "fc.weight": state["fc.weight"] * torch.nan}, tmp_path / "nan.safetensors")
    with fails("not-finite", "nan.safetensors", "'fc.weight'"):
        main(refused(tmp_path / "nan.safetensors", *named, "--classes", classes))
    save_file(network("test_vit", img_size=96).state_dict(), tmp_path / "vit.safetensors")
    with fails("model-unfit", "vit.safetensors", "pos_embed", "--image-size is its size (160 was assumed)"):
        main(refused(tmp_path / "vit.safetensors", "--model-name", "test_vit", "--classes", classes))
    with fails("option-value", "--mean and --std take three numbers", "1,2"):
        main(refused(bare, *named, "--classes", classes, "--mean", "1,2"))
    with fails("model-damaged", "std", "--std"):
        main(refused(bare, *named, "--classes", classes, "--std", "0,1,1"))
    assert not (tmp_path / "m").exists()


def test_features_other_prefixes_and_another_architecture_are_named(tmp_path: Path):
    state = network().state_dict()
    classes, named = classes_file(tmp_path), ["--model-name", "test_resnet"]
    features = {name: value for name, value in state.items() if not name.startswith("fc.")}
    save_file(features, tmp_path / "features.safetensors")
    remedy = f"posters train --model.weights {tmp_path / 'features.safetensors'}"
    with fails("model-unfit", "has no classifier", "but fc.bias, fc.weight", remedy):
        main(refused(tmp_path / "features.safetensors", *named, "--classes", classes))
    prefixed = {f"model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": {**prefixed, "loss.pos_weight": torch.ones(3)}}, tmp_path / "c.ckpt")
    with fails("model-unfit", f"{len(state)} of its {len(state) + 1} names begin with 'model.'"):
        main(refused(tmp_path / "c.ckpt", *named, "--classes", classes))
    save_file({f"net.{name}": value for name, value in features.items()}, tmp_path / "both.safetensors")
    with fails("model-unfit", "both.safetensors", "all its names begin with 'net.'"):
        main(refused(tmp_path / "both.safetensors", *named, "--classes", classes))
    path = train_checkpoint(tmp_path, network(), mean=[0.1, 0.2, 0.3])
    facts = "names the architecture test_resnet, but --model-name is resnet18: leave it out"
    with fails("option-conflict", path, facts):
        main(refused(path, "--model-name", "resnet18", "--classes", classes))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        ("Comedy\nDrama\n", [" has 3 outputs, but there are 2 names of classes"]),
        ("Comedy\nDrama\nComedy\n", ["classes.txt is not a valid list of classes", "names a genre twice ('Comedy')"]),
        ("Comedy\n\nDrama\nWar\n", ["classes.txt: line 2 is empty"]),
        ("\n", ["classes.txt has no names"]),
        (b"Com\xe9die\nDrama\nWar\n", ["classes.txt is not a text in UTF-8"]),
    ],
)
def test_class_lists_that_do_not_fit(tmp_path: Path, names: str | bytes, facts: list[str]):
    save_file(network().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "classes.txt").write_bytes(names.encode() if isinstance(names, str) else names)
    with fails("labels-invalid", *facts):
        main(refused(tmp_path / "w.safetensors", "--model-name", "test_resnet", "--classes", tmp_path / "classes.txt"))


def test_checkpoints_whose_args_do_not_fit(tmp_path: Path):
    made, classes = network(), classes_file(tmp_path)

    def assert_refused(code: Any, *facts: str, **options: Any) -> None:
        path = train_checkpoint(tmp_path, made, **options)
        with fails(code, "model_best.pth.tar", *facts):
            main(refused(path, "--classes", classes))

    assert_refused("labels-invalid", "has 4 classes", "has 3 names", num_classes=4)
    assert_refused("model-unknown", "timm has no model 'nonsense'", "pass another --model-name", model="nonsense")
    assert_refused("model-unfit", "its network was built with bn_eps, which a model folder cannot store", bn_eps=0.1)
    assert_refused("model-unfit", "built with act_layer", model_kwargs={"act_layer": "gelu"})
    assert_refused("model-unfit", "global_pool 'max', which a model folder cannot store", gp="max")
    assert_refused("model-unfit", "cannot build test_resnet with global_pool 'nonsense'", gp="nonsense")
    assert_refused("model-unfit", "does not take RGB", in_chans=1)
    assert_refused(
        "model-unfit", "its images are 64 x 96, but must be squares; pass --image-size", input_size=(3, 64, 96)
    )
    assert_refused("model-unfit", "crop_mode border", "--fit crop", crop_mode="border")
    assert_refused("model-damaged", "crop_pct", "--crop-pct", crop_pct=7.0)
    assert_refused("path-unreadable", "checkpoint (its args)", "img_size", img_size="large")
    assert_refused("path-unreadable", "checkpoint (its args)", "mean", mean=[float("nan")])
    torch.save({"state_dict": made.state_dict(), "arch": "test_resnet", "epoch": -1}, tmp_path / "c.pth")
    with fails("path-unreadable", "c.pth is not a valid checkpoint", "epoch"):
        main(refused(tmp_path / "c.pth", "--classes", classes))
    assert not (tmp_path / "m").exists()


def test_folders_that_do_not_fit(tmp_path: Path, model_folder: Path):
    classes, hf = classes_file(tmp_path), tmp_path / "hf"
    save_for_hf(network(), str(hf), safe_serialization=True)
    config = json.loads((hf / "config.json").read_text())

    def assert_refused(code: Any, *facts: str, **changes: Any) -> None:
        (hf / "config.json").write_text(json.dumps(config | changes))
        with fails(code, *facts):
            main(refused(hf))

    assert_refused("option-missing", "does not name its classes")
    assert_refused("labels-invalid", "has 4 classes, but its label_names has 3 names", label_names=NAMES, num_classes=4)
    assert_refused("labels-invalid", "config.json has no name for output 1", label_names={"0": "a", "2": "b", "7": "c"})
    assert_refused("labels-invalid", "names a genre twice ('a')", label_names=["a", "b", "a"])
    assert_refused("labels-invalid", "list of classes", label_names=[1, 2, 3])
    huge, wide = {"img_size": 10**6}, {"img_size": [80, 96]}
    assert_refused("model-damaged", "config.json", "input_size", label_names=NAMES, model_args=huge)
    assert_refused("model-unfit", "config.json", "80 x 96", label_names=NAMES, model_args=wide)
    assert_refused("model-damaged", "config.json", "input_size", label_names=NAMES, model_args={"img_size": "x"})
    assert_refused("model-unfit", "built with checkpoint_path", label_names=NAMES, model_args={"checkpoint_path": "x"})
    assert_refused("path-unreadable", "config.json", "architecture", architecture=7)
    (hf / "config.json").write_text(json.dumps(config))
    (hf / "model.safetensors").unlink()
    with fails("model-missing", "has no model.safetensors or pytorch_model.bin"):
        main(refused(hf, "--classes", classes))
    with fails("model-missing", hf, "lacks labels.json; `posters import` makes a model folder"):
        load_model_folder(hf)
    with fails("path-unreadable", "needs no import"):
        main(refused(model_folder))
    (hf / "config.json").unlink()
    with fails("path-unreadable", hf, "no config.json"):
        main(refused(hf))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path):
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": network().state_dict(), "args": Runs()}, tmp_path / "c.pth.tar")
    run = posters_command("import", "--checkpoint", tmp_path / "c.pth.tar", "--out", tmp_path / "m")
    assert run.returncode == 2 and len(error_lines(run)) == 1 and "posix.system" in run.stderr
    assert not (tmp_path / "ran").exists() and not (tmp_path / "m").exists()


def test_the_earlier_script_needs_none_of_the_options(tmp_path: Path):
    from import_tools import Script, content

    torch.save(content(Script()), tmp_path / "c.pth")
    with fails("option-conflict", "c.pth", "earlier training script", "leave --image-size out"):
        main(refused(tmp_path / "c.pth", "--image-size", 64))
