"""Checkpoints and folders of timm become model folders with timm's logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hub_server import running_hub
from import_timm_tools import NAMES, classes_file, network, train_checkpoint
from safetensors.torch import save_file
from timm.models import save_for_hf

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from toolkit.cli.main import main
from toolkit.model_folder.folder import ModelFolder, load_model_folder

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "student.backbone.", "net.module."]
)
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


@pytest.mark.parametrize("name", ["timm/test_resnet", "hf_hub:timm/test_resnet.r160_in1k", "hf-hub:timm/test_resnet"])
def test_names_of_timms_repositories(tmp_path: Path, name: str):
    made, classes = network(), classes_file(tmp_path)
    save_file(made.state_dict(), tmp_path / "w.safetensors")
    folder = import_it(tmp_path / "w.safetensors", tmp_path / "m", "--model-name", name, "--classes", classes)
    assert_same_logits(folder, made)
    path = train_checkpoint(tmp_path, made, model=name)
    assert_same_logits(import_it(path, tmp_path / "n", "--model-name", "test_resnet", "--classes", classes), made)


def test_a_checkpoint_of_lightning(tmp_path: Path):
    made = network()
    state = {f"model.{name}": value for name, value in made.state_dict().items()}
    content = {"state_dict": state, "epoch": 2, "global_step": 9, "pytorch-lightning_version": "2.5.0", "callbacks": {}}
    torch.save({**content, "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    options = ["--model-name", "test_resnet", "--classes", classes_file(tmp_path)]
    assert_same_logits(import_it(tmp_path / "last.ckpt", tmp_path / "m", *options), made)


def test_a_name_that_timm_does_not_have_is_replaced_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = network()
    path, options = train_checkpoint(tmp_path, made, model="my_net"), ["--model-name", "test_resnet"]
    assert_same_logits(import_it(path, tmp_path / "m", *options, "--classes", classes_file(tmp_path)), made)
    line = "the checkpoint names the architecture my_net, which timm does not have: test_resnet was used"
    assert f"difference    {line}" in capsys.readouterr().out


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


def test_timm_reads_the_imported_folder_again(tmp_path: Path):
    made = network()
    folder = import_it(train_checkpoint(tmp_path, made), tmp_path / "m", "--classes", classes_file(tmp_path))
    again: Any = timm.create_model(f"local-dir:{folder.path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        np.testing.assert_allclose(again(images).numpy(), made(images).numpy(), atol=1e-5)
