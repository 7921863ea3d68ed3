"""`posters export`: every head and kind of backbone, in both formats; what the files say; what goes wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from failing import fails
from toolkit_helpers import make_model_folder, posters_command, some_decisions

from shards.dataset.labels import LabelSet
from shards.errors import Code, UserError
from toolkit.cli.main import main
from toolkit.export.torch_export import load_torch_export
from toolkit.inference.onnx_runtime import open_exported, read_facts, run_session
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec, backbone_features

LABELS = LabelSet(("a", "b", "c"))
CPU = torch.device("cpu")
HEADS = {
    "linear": HeadSpec("linear", (), 0.1),
    "mlp": HeadSpec("mlp", (8, 4), 0.5),
    "levels": HeadSpec("levels", (), 0.2),
    "ensemble": HeadSpec("ensemble", (8,), 0.5, 3),
}


def folder_of(tmp_path: Path, head: str, name: str = "test_resnet", fit: str = "crop") -> Path:
    size = 64 if name == "test_convnext" else 32
    return make_model_folder(tmp_path / "model", LABELS, HEADS[head], size, name, some_decisions(3), fit)


@pytest.mark.parametrize(
    ("name", "head"), [("test_resnet", head) for head in HEADS] + [("test_vit", "mlp"), ("test_convnext", "levels")]
)
def test_a_file_gives_what_the_model_gives(tmp_path: Path, name: str, head: str, one_thread: None):
    path = folder_of(tmp_path, head, name)
    assert main(["export", "--model", str(path)]) == 0
    folder = load_model_folder(path)
    session = open_exported(path / "model.onnx", CPU)
    assert [entry.name for entry in session.get_inputs()] == ["images"]
    size = folder.preprocessing.image_size
    for count in (1, 2, 5):
        images = torch.randn(count, 3, size, size)
        with torch.inference_mode():
            logits = folder.model(images).numpy()
            embedding = backbone_features(folder.model, images).numpy()
        given = run_session(session, images.numpy())
        assert set(given) == {"logits", "probabilities", "embedding"}
        np.testing.assert_allclose(given["logits"], logits, atol=1e-5)
        np.testing.assert_allclose(given["embedding"], embedding, atol=1e-4)
        np.testing.assert_allclose(given["probabilities"], folder.decisions.probabilities(logits), atol=1e-6)


def test_the_file_says_whose_it_is_and_is_one_file(tmp_path: Path, one_thread: None):
    path = folder_of(tmp_path, "linear")
    main(["export", "--model", str(path), "--opset", "20", "--out", str(tmp_path / "out" / "m.onnx")])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["m.onnx"]
    assert not (path / "model.onnx").exists()
    file = tmp_path / "out" / "m.onnx"
    folder = load_model_folder(path)
    said = read_facts(open_exported(file, CPU), file)
    assert said["genres"] == ["a", "b", "c"] and said["labels_fingerprint"] == LABELS.fingerprint
    assert said["weights_sha256"] == folder.fingerprint and said["thresholds"] == folder.thresholds.tolist()
    assert (said["image_size"], said["preprocess"], said["opset"]) == (32, False, 20)
    model = onnx.load(file)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20
    assert str(tmp_path) not in str(model.metadata_props)


def test_torch_export_too(tmp_path: Path, one_thread: None):
    path = folder_of(tmp_path, "ensemble")
    assert main(["export", "-m", str(path), "--format", "torch-export"]) == 0
    network, said = load_torch_export(path / "model.pt2")
    folder = load_model_folder(path)
    assert said["weights_sha256"] == folder.fingerprint and said["opset"] is None
    for count in (1, 4):
        images = torch.randn(count, 3, 32, 32)
        with torch.inference_mode():
            logits, probabilities, embedding = network(images)
            wanted = folder.model(images)
        torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(embedding, backbone_features(folder.model, images), atol=1e-4, rtol=0)
        np.testing.assert_allclose(probabilities.numpy(), folder.decisions.probabilities(wanted.numpy()), atol=1e-6)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_with_preprocessing_it_takes_images_of_any_size(tmp_path: Path, fit: str, one_thread: None):
    from PIL import Image

    path = folder_of(tmp_path, "linear", fit=fit)
    assert main(["export", "-m", str(path), "--preprocess"]) == 0
    folder = load_model_folder(path)
    session = open_exported(path / "model-preprocess.onnx", CPU)
    assert read_facts(session, path)["preprocess"] is True
    for count, height, width in ((1, 90, 60), (3, 47, 131), (2, 32, 32)):
        images = np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
        squares = np.stack([folder.preprocessing.square(Image.fromarray(image)) for image in images])
        with torch.inference_mode():
            logits = folder.model(folder.preprocessing.normalize(torch.from_numpy(squares))).numpy()
        given = run_session(session, images)
        np.testing.assert_allclose(given["probabilities"], folder.decisions.probabilities(logits), atol=2e-3)


def test_the_command_is_quiet_and_says_the_difference(tmp_path: Path):
    path = folder_of(tmp_path, "linear")
    run = posters_command("export", "--model", path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[0].startswith("max difference  logits ") and "probabilities" in lines[0]
    assert lines[1].startswith("checked         12 images in batches of 1, 3, 8: onnxruntime")
    assert lines[2].startswith(f"exported        {path / 'model.onnx'}")


def broken_export(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Exported networks from here on go through ``change`` first."""
    from toolkit.export import network as export_network

    class Broken(export_network.ExportNetwork):
        def __init__(self, folder: Any) -> None:
            super().__init__(folder)
            with torch.no_grad():
                change(self)

    monkeypatch.setattr("toolkit.export.onnx_export.ExportNetwork", Broken)
    monkeypatch.setattr("toolkit.export.torch_export.ExportNetwork", Broken)


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_over_the_tolerance_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, one_thread: None
):
    path = folder_of(tmp_path, "linear")
    before = sorted(file.name for file in path.iterdir())
    broken_export(monkeypatch, lambda network: network.model.fc.bias.add_(0.01))
    with pytest.raises(UserError, match=r"nothing was exported: logits .* 0\.01, over the tolerance of 0\.001"):
        main(["export", "-m", str(path), "--format", form])
    assert sorted(file.name for file in path.iterdir()) == before
    assert main(["export", "-m", str(path), "--format", form, "--tolerance", "0.1"]) == 0


def test_an_older_file_stays_when_the_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None):
    path = folder_of(tmp_path, "linear")
    (path / "model.onnx").write_bytes(b"older")
    broken_export(monkeypatch, lambda network: network.bias.add_(0.5))
    with fails("export-differs", "probabilities", "--tolerance"):
        main(["export", "-m", str(path)])
    assert (path / "model.onnx").read_bytes() == b"older"


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        (["--opset", "17"], "option-value", ["--opset", "18 to", "17"]),
        (["--opset", "999"], "option-value", ["--opset", "18 to", "999"]),
        (["--format", "torch-export", "--preprocess"], "option-conflict", ["--preprocess", "--format onnx"]),
        (["--tolerance", "0"], "option-value", ["--tolerance", "positive", "0"]),
        (["--check", "nowhere"], "path-missing", ["--check", "nowhere"]),
        (["--out", "."], "path-exists", ["--out", "model.onnx"]),
    ],
)
def test_wrong_options_are_one_line(model_folder: Path, arguments: list[str], code: Code, facts: list[str]):
    with fails(code, *facts):
        main(["export", "-m", str(model_folder), *arguments])


def test_a_missing_extra_is_named(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"ONNX export needs onnxscript: .*'poster-toolkit\[export\]'"):
        main(["export", "-m", str(model_folder)])


def test_too_large_for_one_file(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolkit.export.onnx_export.MAX_WEIGHTS", 1000)
    with fails("export-unsupported", model_folder, "2", "--format torch-export"):
        main(["export", "-m", str(model_folder)])


def test_what_torch_cannot_export_is_one_line(model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    from toolkit.export import network as export_network

    class Odd(export_network.ExportNetwork):
        def forward(self, images: torch.Tensor) -> Any:
            return images if images.sum() > 0 else -images

    monkeypatch.setattr("toolkit.export.onnx_export.ExportNetwork", Odd)
    with fails("export-unsupported", "test_resnet", "ONNX", "--format torch-export"):
        main(["export", "-m", str(model_folder)])


def test_parsing_options_loads_neither_torch_nor_onnx():
    import subprocess

    code = (
        "import sys, toolkit.cli.commands as c; c.read(['export', '-m', 'x']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'onnxruntime', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_facts_are_json(model_folder: Path):
    from toolkit.export.network import facts

    assert json.loads(json.dumps(facts(load_model_folder(model_folder), False, 18)))["opset"] == 18


def test_a_full_disk_leaves_no_file(model_folder: Path, small_disk: Path):
    for format in ("onnx", "torch-export"):
        with pytest.raises(OSError, match="No space left on device"):
            main(["export", "-m", str(model_folder), "--format", format, "--out", str(small_disk / "file")])
        assert list(small_disk.iterdir()) == []
