"""The folder that leaves a training: loadable by plain timm, whole, and honest about damage."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from failing import fails
from forked import run_forked
from import_tools import Script, content
from toolkit_helpers import clean_env, make_model_folder, some_decisions, with_threshold

from shards.dataset.labels import LabelSet
from shards.errors import UserError
from shards.storage.files import write_json
from shards.storage.leftovers import machine, remove_dead_partials
from shards.storage.remote_files import unique_name
from toolkit.cli.main import main
from toolkit.config.values import HeadKind
from toolkit.evaluation.results import evaluate_arrays
from toolkit.metrics.helpers import sigmoid
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import load_model_folder, recover_model_folder, write_labels
from toolkit.models.heads import HeadSpec


def test_plain_timm_gives_the_same_logits(model_folder: Path):
    ours = load_model_folder(model_folder)
    theirs: Any = timm.create_model(f"local-dir:{model_folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(ours.model(images), theirs(images))
    cfg = theirs.pretrained_cfg
    assert list(cfg["input_size"]) == [3, 32, 32] and cfg["num_classes"] == len(ours.labels)
    assert list(cfg["label_names"]) == list(ours.labels.genres)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=theirs))
    assert "bilinear" in str(transform)


def test_whoever_reads_the_folder_reads_the_weights(model_folder: Path):
    modes = {(model_folder / name).stat().st_mode for name in ("model.safetensors", "labels.json", "config.json")}
    assert len(modes) == 1


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_models_of_a_fixed_size_too(tmp_path: Path, name: str):
    labels = LabelSet(("a", "b"))
    folder = make_model_folder(tmp_path / "m", labels, HeadSpec("linear", (), 0.0), size=64, name=name)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load_model_folder(folder).model(images), theirs(images))


def test_mlp_head_round_trip(tmp_path: Path):
    labels = LabelSet(("a", "b", "c"))
    folder = make_model_folder(tmp_path / "m", labels, HeadSpec("mlp", (8, 4), 0.5))
    loaded = load_model_folder(folder)
    assert loaded.labels == labels and loaded.thresholds.tolist() == [0.5] * 3
    assert not loaded.model.training
    torch.manual_seed(0)  # the same weights again
    again = make_model_folder(tmp_path / "n", labels, HeadSpec("mlp", (8, 4), 0.5))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), load_model_folder(again).model(images))


def test_decisions_come_back_bit_for_bit(tmp_path: Path):
    labels = LabelSet(("a", "b", "c"))
    decisions = some_decisions(3)
    folder = make_model_folder(tmp_path / "m", labels, HeadSpec("linear", (), 0.0), decisions=decisions)
    loaded = load_model_folder(folder)
    assert loaded.decisions.to_dict() == decisions.to_dict()
    assert (loaded.thresholds == decisions.thresholds).all()
    logits = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert (loaded.decisions.probabilities(logits) == decisions.probabilities(logits)).all()
    card = (folder / "README.md").read_text()
    assert "0.350 to 0.650, for a test" in card and "Platt scaling per genre" in card


def test_a_folder_from_before_calibration_still_loads(tmp_path: Path):
    labels = LabelSet(("a", "b", "c"))
    folder = make_model_folder(tmp_path / "m", labels, HeadSpec("linear", (), 0.0))
    old = {"thresholds": [0.3] * 3, "threshold_source": "words"}
    names = {"genres": list(labels.genres), "fingerprint": labels.fingerprint}
    (folder / "labels.json").write_text(json.dumps({**names, **old}))
    loaded = load_model_folder(folder)
    assert loaded.thresholds.tolist() == [0.3] * 3 and loaded.decisions.calibration == "none"
    logits = np.array([[-1.0, 0.0, 2.0]], np.float32)
    assert (loaded.decisions.probabilities(logits) == sigmoid(logits)).all()


def test_the_evaluation_view_is_remembered(tmp_path: Path):
    labels = LabelSet(("a", "b"))
    for fit, mode in (("crop", "center"), ("stretch", "squash")):
        folder = make_model_folder(tmp_path / fit, labels, HeadSpec("linear", (), 0.0), fit=fit)
        assert load_model_folder(folder).preprocessing.fit == fit
        assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["crop_mode"] == mode
        theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=theirs))
        assert ("size=(32, 32)" in str(transform.transforms[0])) == (fit == "stretch")


def test_metrics_of_other_decisions_stay_out_of_the_card(copy: Path, caplog: pytest.LogCaptureFixture):
    folder = load_model_folder(copy)
    evaluation = evaluate_arrays(
        np.eye(len(folder.labels), dtype=bool),
        np.eye(len(folder.labels)),
        folder.labels.genres,
        np.full(len(folder.labels), 0.1),
        folder.decisions,
        split="test",
        shard_set="",
    )
    write_json(copy / "metrics-test.json", evaluation.to_dict())
    write_card(copy)
    assert "## Metrics on test" in (copy / "README.md").read_text()
    assert "Expected calibration error" in (copy / "README.md").read_text()
    write_labels(copy, folder.labels, with_threshold(folder.decisions, 0.4))
    write_card(copy)
    assert "## Metrics on test" not in (copy / "README.md").read_text()
    again = f"run `posters evaluate --model {copy} --shards SHARDS --split test` again"
    assert f"metrics-test.json has older thresholds or calibration: {again}" in caplog.text


def test_the_card_says_whose_weights_they_are(copy: Path):
    assert "moving average" not in (copy / "README.md").read_text()
    config = json.loads((copy / "config.json").read_text())
    config["poster_toolkit"]["weights"] = "ema"
    write_json(copy / "config.json", config)
    write_card(copy)
    assert "the weights are from epoch 0 (moving average)" in (copy / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("linear", "a linear head,"),
        ("mlp", "an mlp head (96 → 8 → 4 → 2)"),
        ("levels", "a linear head on the last two stages (288 → 2)"),
    ],
)
def test_the_card_says_which_head(tmp_path: Path, kind: HeadKind, words: str):
    folder = make_model_folder(tmp_path / "m", LabelSet(("a", "b")), HeadSpec(kind, (8, 4), 0.0))
    card = (folder / "README.md").read_text()
    assert words in card
    assert ("loads in plain timm" in card) == (kind == "linear")


def test_card_and_labels_tell_the_truth(model_folder: Path, labels: LabelSet):
    card = (model_folder / "README.md").read_text()
    assert all(genre in card for genre in labels.genres) and labels.fingerprint in card
    raw = json.loads((model_folder / "labels.json").read_text())
    assert raw["genres"] == list(labels.genres) and raw["fingerprint"] == labels.fingerprint


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "labels.json"])
def test_a_missing_file_is_named(copy: Path, name: str):
    (copy / name).unlink()
    with fails("model-missing", copy, name):
        load_model_folder(copy)


def test_damaged_weights_are_noticed(copy: Path):
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with fails("model-damaged", "sha256"):
        load_model_folder(copy)


def test_edited_labels_are_noticed(copy: Path):
    raw = json.loads((copy / "labels.json").read_text())
    raw["genres"][0], raw["genres"][1] = raw["genres"][1], raw["genres"][0]
    (copy / "labels.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match="fingerprint"):
        load_model_folder(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"genres": 3}', "not json"])
@pytest.mark.parametrize("name", ["config.json", "labels.json"])
def test_malformed_json_is_one_line(copy: Path, name: str, text: str):
    (copy / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_model_folder(copy)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_no_folder():
    with fails("model-missing", "nowhere"):
        load_model_folder(Path("nowhere"))


def test_a_kill_between_the_two_renames_loses_nothing(copy: Path):
    copy.rename(copy.with_name("model.old"))
    half = copy.with_name("model.123.partial")
    half.mkdir()
    recover_model_folder(copy)
    assert np.isfinite(load_model_folder(copy).thresholds).all()
    assert not half.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path):
    with fails("path-unwritable", small_disk / "model", "No space left on device"):
        make_model_folder(small_disk / "model", LabelSet(("a", "b")), HeadSpec("linear", (), 0.0))
    assert list(small_disk.iterdir()) == []


def killed_within(work: Callable[[], object]) -> None:
    """Run ``work`` in a process that is killed by SIGKILL at its end, within what it has open."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KILLED_IMPORT = """
import os, signal, sys
from toolkit.model_folder import folder as model_folder
from toolkit.cli.main import main
model_folder.write_labels = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_what_a_killed_import_left_goes_at_the_next(tmp_path: Path):
    theirs = [tmp_path / "m.old", tmp_path / "m.notes.partial", tmp_path / "mm.1-2.partial", tmp_path / "m.5.partial.x"]
    for path in theirs:
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    torch.save(content(Script()), tmp_path / "c.pth")
    command = ["import", "--checkpoint", str(tmp_path / "c.pth"), "--out", str(tmp_path / "m")]
    # A process of its own: torch's threads do not come along in a fork of this one, which then waits for them.
    (script := tmp_path / "killed.py").write_text(KILLED_IMPORT)
    assert run_forked([script, *command], [clean_env()], 60).returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.glob("m.*.partial") if path not in theirs)
    assert (left / "model.safetensors").exists() and not (tmp_path / "m").exists()
    alive = tmp_path / unique_name("m", ".partial")  # of this process, as of another one at work
    alive.mkdir()
    assert main(command) == 0 and load_model_folder(tmp_path / "m")
    assert not left.exists() and alive.exists()
    assert all((path / "mine.txt").read_text() == "mine" for path in theirs)


def test_what_killed_commands_left_in_a_folder_goes_at_the_next(copy: Path, monkeypatch: pytest.MonkeyPatch):
    loaded = load_model_folder(copy)
    before = (copy / "labels.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        killed_within(lambda: write_labels(copy, loaded.labels, with_threshold(loaded.decisions, 0.1)))
    (left,) = copy.glob("labels.json.*.partial")
    alive = copy / unique_name("labels.json", ".partial")
    elsewhere = copy / left.name.replace(machine(), "another-host")
    users = copy / "notes.partial"
    for path in (alive, elsewhere, users):
        path.write_text("x")
    remove_dead_partials(copy)
    assert not left.exists() and alive.exists() and elsewhere.exists() and users.exists()
    os.utime(elsewhere, (0, 0))
    remove_dead_partials(copy)
    assert not elsewhere.exists() and (copy / "labels.json").read_bytes() == before


def test_the_number_of_a_killed_process_may_be_anothers_by_now(tmp_path: Path):
    left, alive = (tmp_path / unique_name("labels.json", ".partial") for _ in range(2))
    left.write_text("x")
    alive.write_text("x")
    os.utime(left, (0, 0))  # before the process of this number, which is this one, began
    remove_dead_partials(tmp_path)
    assert not left.exists() and alive.exists()


@pytest.mark.parametrize("writer", [f"{machine()}-999999999-04158978", f"{machine()}-999999999-a4158978", "999999999"])
def test_a_dead_writer_is_found_whatever_digits_its_token_has(tmp_path: Path, writer: str):
    left = tmp_path / f"m.{writer}.partial"
    left.write_text("x")
    remove_dead_partials(tmp_path)
    assert not left.exists()
