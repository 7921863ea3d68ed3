"""Checkpoints and folders of timm become model folders with timm's logits; what does not fit is one line."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from failing import fails
from hub_server import running_hub
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.task import MultiLabelClassificationTask
from timm.utils import CheckpointSaver
from toolkit_helpers import error_lines, posters_command

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.cli.main import main
from toolkit.model_folder.folder import ModelFolder, load_model_folder

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("Comedy", "Drama", "War")


def network(name: str = "test_resnet", classes: int = len(NAMES), seed: int = 0, **options: Any) -> Any:
    """A network of timm, in evaluation mode, whose statistics and logits are no trivial ones."""
    torch.manual_seed(seed)
    made: Any = timm.create_model(name, num_classes=classes, **options)
    size = made.pretrained_cfg["input_size"][1] if "img_size" not in options else options["img_size"]
    made.train()(torch.randn(4, 3, size, size))
    return made.eval()


def classes_file(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    return folder / "classes.txt"


def import_it(checkpoint: object, out: Path, *options: object) -> ModelFolder:
    assert main(["import", "--checkpoint", str(checkpoint), "--out", str(out), *map(str, options)]) == 0
    return load_model_folder(out)


def assert_same_logits(folder: ModelFolder, made: Any, names: tuple[str, ...] = NAMES) -> None:
    size = folder.preprocessing.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = made(images)
        torch.testing.assert_close(folder.model(images), wanted, atol=1e-5, rtol=1e-5)
    assert wanted.std(dim=0).min() > 1e-5
    assert folder.labels.genres == names and folder.thresholds.tolist() == [0.5] * len(names)


def train_checkpoint(folder: Path, made: Any, ema: Any = None, **options: Any) -> Path:
    """What timm's train.py saves, by timm's own saver."""
    args = argparse.Namespace(
        **{
            "model": "test_resnet", "num_classes": len(NAMES), "in_chans": None, "img_size": None, "input_size": None,
            "mean": None, "std": None, "crop_pct": None, "interpolation": "", "gp": None, "bn_eps": None, "lr": 0.1,
            "model_kwargs": {}, "task": "multilabel", "opt_betas": [0.9, 0.99], "device": "cpu", **options,
        }
    )  # fmt: skip
    optimizer = torch.optim.AdamW(made.parameters())
    task = MultiLabelClassificationTask(made, verbose=False)
    if ema is not None:
        averages: Any = task.setup_ema()
        averages.module.load_state_dict(ema.state_dict())
    saver = CheckpointSaver(made, optimizer, args, checkpoint_dir=str(folder), recovery_dir=str(folder), task=task)
    saver.save_checkpoint(4, metric=0.5)
    return folder / "model_best.pth.tar"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_a_checkpoint_of_timms_train_py(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]):
    made = network(name)
    folder = import_it(
        train_checkpoint(tmp_path, made, model=name), tmp_path / "m", "--classes", classes_file(tmp_path)
    )
    assert_same_logits(folder, made)
    cfg = made.pretrained_cfg
    assert folder.preprocessing.mean == tuple(cfg["mean"]) and folder.preprocessing.crop_pct == cfg["crop_pct"]
    assert folder.config["architecture"] == name and folder.config["poster_toolkit"]["epoch"] == 4
    out = capsys.readouterr().out
    assert f"{name}, linear head, {cfg['input_size'][1]} pixels" in out and "`posters tune` chooses better ones" in out
    assert ("difference    timm resized images with bicubic" in out) == (cfg["interpolation"] == "bicubic")


def test_the_options_of_train_py_are_those_of_the_images(tmp_path: Path):
    made = network("test_vit", img_size=96)
    given = {"model": "test_vit.r160_in1k", "img_size": 96, "mean": [0.4], "std": [0.2, 0.3, 0.4], "crop_pct": 0.8}
    path = train_checkpoint(tmp_path, made, **given, crop_mode="center", model_kwargs={"drop_path_rate": 0.1})
    folder = import_it(path, tmp_path / "m", "--classes", classes_file(tmp_path))
    assert_same_logits(folder, made)
    pixels = folder.preprocessing
    assert (pixels.image_size, pixels.mean, pixels.std) == (96, (0.4, 0.4, 0.4), (0.2, 0.3, 0.4))
    assert (pixels.crop_pct, pixels.fit) == (0.8, "crop")
    more = ["--mean", "0.1,0.2,0.3", "--std", "1,1,1", "--crop-pct", "1", "--fit", "stretch"]
    pixels = import_it(path, tmp_path / "other", "--classes", classes_file(tmp_path), *more).preprocessing
    assert (pixels.mean, pixels.std, pixels.crop_pct, pixels.fit) == ((0.1, 0.2, 0.3), (1, 1, 1), 1.0, "stretch")


def test_the_moving_average_is_taken_if_there_is_one(tmp_path: Path):
    made, average = network(), network(seed=1)
    path, classes = train_checkpoint(tmp_path, made, ema=average), classes_file(tmp_path)
    folder = import_it(path, tmp_path / "m", "--classes", classes)
    assert_same_logits(folder, average)
    assert folder.config["poster_toolkit"]["weights"] == "ema"
    assert_same_logits(import_it(path, tmp_path / "raw", "--classes", classes, "--no-ema"), made)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_files_of_weights_alone(tmp_path: Path, prefix: str, ending: str):
    made = network()
    state, path = {f"{prefix}{name}": value for name, value in made.state_dict().items()}, tmp_path / f"w{ending}"
    if ending == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    options = ["--model-name", "test_resnet", "--classes", classes_file(tmp_path), "--image-size", 64]
    folder = import_it(path, tmp_path / "m", *options)
    assert_same_logits(folder, made)
    assert folder.preprocessing.image_size == 64 and folder.preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("place", ["{}", "local-dir:{}"])
def test_a_folder_in_timms_hub_format(tmp_path: Path, place: str, safe: bool):
    made = network("test_vit", img_size=80)
    save_for_hf(made, str(tmp_path / "hf"), {"label_names": list(NAMES)}, safe_serialization=safe)
    assert_same_logits(import_it(place.format(tmp_path / "hf"), tmp_path / "m"), made)
    assert load_model_folder(tmp_path / "m").preprocessing.image_size == 80
    own = ("a", "b", "c")  # other names of the user's own
    assert_same_logits(
        import_it(tmp_path / "hf", tmp_path / "own", "--classes", classes_file(tmp_path, own)), made, own
    )


def test_a_model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = network()
    save_for_hf(made, str(tmp_path / "hf"), {"label_names": dict(enumerate(NAMES))}, safe_serialization=True)
    with running_hub() as hub:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", hub.url + ("" if name == "ENDPOINT" else URL))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        hub.files = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
        assert_same_logits(import_it("hf://user/name", tmp_path / "m"), made)


URL = "/{repo_id}/resolve/{revision}/{filename}"


def test_class_lists_of_every_form(tmp_path: Path, shard_set: Path):
    genres = tuple(Manifest.read(shard_set).genres)
    made = network(classes=len(genres))
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "list.json").write_text(json.dumps(genres))
    (tmp_path / "list.txt").write_bytes("\r\n".join(genres).encode("utf-8-sig") + b"\r\n\r\n")
    for number, path in enumerate((shard_set / "manifest.json", tmp_path / "list.json", tmp_path / "list.txt")):
        folder = import_it(
            tmp_path / "w.safetensors", tmp_path / str(number), "--model-name", "test_resnet", "--classes", path
        )
        assert_same_logits(folder, made, genres)
    again = tmp_path / "0" / "labels.json"
    import_it(tmp_path / "w.safetensors", tmp_path / "x", "--model-name", "test_resnet", "--classes", again)


def test_then_tune_evaluate_report_and_predict(tmp_path: Path, shard_set: Path, labels: LabelSet, posters: Path):
    made = network(classes=len(labels))
    path, classes = train_checkpoint(tmp_path, made, num_classes=len(labels)), shard_set / "manifest.json"
    import_it(path, tmp_path / "m", "--classes", classes, "--image-size", 32)
    on_set = ["--model", tmp_path / "m", "--shards", shard_set, "--workers", 1, "--precision", "no"]
    assert main([*map(str, ["tune", *on_set])]) == 0
    assert load_model_folder(tmp_path / "m").thresholds.tolist() != [0.5] * len(labels)
    assert main([*map(str, ["evaluate", *on_set, "--report", tmp_path / "report", "-o", tmp_path / "e.json"])]) == 0
    assert (tmp_path / "report" / "index.html").is_file() and (tmp_path / "e.json").is_file()
    assert main(["predict", str(posters / "images" / "p00001.jpg"), "-m", str(tmp_path / "m")]) == 0


def test_a_model_of_one_class_per_image_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made, classes = network(), classes_file(tmp_path)
    path = train_checkpoint(tmp_path, made, task=None)
    assert_same_logits(import_it(path, tmp_path / "m", "--classes", classes), made)
    assert "was trained for one class per image" in caplog.text and "`posters tune`" in caplog.text
    caplog.clear()
    import_it(train_checkpoint(tmp_path, made), tmp_path / "n", "--classes", classes)
    assert not caplog.text


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


def test_timm_reads_the_imported_folder_again(tmp_path: Path):
    made = network()
    folder = import_it(train_checkpoint(tmp_path, made), tmp_path / "m", "--classes", classes_file(tmp_path))
    again: Any = timm.create_model(f"local-dir:{folder.path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        np.testing.assert_allclose(again(images).numpy(), made(images).numpy(), atol=1e-5)
