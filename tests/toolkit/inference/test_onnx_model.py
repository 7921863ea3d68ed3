"""An exported file in place of the network: the same numbers, and never another model's."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx
import pytest
import torch
from failing import fails
from toolkit_helpers import make_model_folder

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from toolkit.cli.main import main
from toolkit.inference.onnx_runtime import OnnxModel
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec, backbone_features

CPU = torch.device("cpu")
LABELS = LabelSet(("a", "b", "c"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with model.onnx in it. Read-only."""
    path = make_model_folder(tmp_path_factory.mktemp("onnx") / "model", LABELS, HeadSpec("levels", (), 0.0))
    assert main(["export", "-m", str(path)]) == 0
    return path


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "model")


def test_it_answers_as_the_network_does(exported: Path):
    folder = load_model_folder(exported)
    model = OnnxModel(exported / "model.onnx", folder, CPU)
    for count in (1, 7):
        images = torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        logits, embedding = model(images)
        with torch.inference_mode():
            torch.testing.assert_close(logits, folder.model(images), atol=1e-5, rtol=0)
            torch.testing.assert_close(embedding, backbone_features(folder.model, images), atol=1e-4, rtol=0)
        assert logits.dtype == embedding.dtype == torch.float32


def test_it_runs_on_torchs_number_of_threads(exported: Path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        session = OnnxModel(exported / "model.onnx", load_model_folder(exported), CPU).session
        assert session.get_session_options().intra_op_num_threads == 1
        assert session.get_providers() == ["CPUExecutionProvider"]
    finally:
        torch.set_num_threads(before)


def test_a_missing_file_says_how_to_make_it(model_folder: Path):
    with fails("model-missing", model_folder / "model.onnx", f"posters export --model {model_folder}"):
        OnnxModel(model_folder / "model.onnx", load_model_folder(model_folder), CPU)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a\x12\x00"])
def test_what_is_no_onnx_file(copy: Path, content: bytes):
    (copy / "model.onnx").write_bytes(content)
    with pytest.raises(UserError) as caught:
        OnnxModel(copy / "model.onnx", load_model_folder(copy), CPU)
    assert "model.onnx" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "no json", "[]"])
def test_an_onnx_file_of_another_tool(copy: Path, value: str | None):
    model = onnx.load(copy / "model.onnx")
    onnx.helper.set_model_props(model, {} if value is None else {"poster_toolkit": value})
    onnx.save(model, copy / "model.onnx")
    with fails("path-unreadable", copy / "model.onnx", "poster_toolkit"):
        OnnxModel(copy / "model.onnx", load_model_folder(copy), CPU)


def test_a_file_of_other_weights_or_genres(exported: Path, tmp_path: Path):
    torch.manual_seed(1)
    other = make_model_folder(tmp_path / "weights", LABELS, HeadSpec("linear", (), 0.0))
    with pytest.raises(UserError, match=r"its weights differ from those of .*posters export.* again"):
        OnnxModel(exported / "model.onnx", load_model_folder(other), CPU)
    folder = load_model_folder(exported)
    folder.labels = LabelSet(("a", "c", "b"))
    with fails("model-other", exported / "model.onnx", "genres"):
        OnnxModel(exported / "model.onnx", folder, CPU)


def test_a_file_with_preprocessing_is_refused(copy: Path):
    main(["export", "-m", str(copy), "--preprocess", "--out", str(copy / "model.onnx")])
    with fails("model-other", copy / "model.onnx", "--preprocess"):
        OnnxModel(copy / "model.onnx", load_model_folder(copy), CPU)


def test_without_onnxruntime(exported: Path, monkeypatch: pytest.MonkeyPatch):
    folder = load_model_folder(exported)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"a model in ONNX needs onnxruntime: .*\[export\]"):
        OnnxModel(exported / "model.onnx", folder, CPU)
