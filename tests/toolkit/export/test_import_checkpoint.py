"""Checkpoints of the earlier script become model folders that give the same logits."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing import fails
from import_tools import GENRES, Script, binarizer, content
from PIL import Image
from toolkit_helpers import error_lines, posters_command
from torchvision.transforms import v2

from shards.errors import Code, UserError
from toolkit.cli.main import main
from toolkit.metrics.helpers import sigmoid
from toolkit.model_folder.folder import ModelFolder, load_model_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def import_it(tmp_path: Path, network: Script, **changes: Any) -> ModelFolder:
    torch.save(content(network, **changes), tmp_path / "c.pth")
    assert main(["import", "--checkpoint", str(tmp_path / "c.pth"), "--out", str(tmp_path / "m")]) == 0
    return load_model_folder(tmp_path / "m")


def assert_same_logits(folder: ModelFolder, network: Script) -> None:
    images = torch.randn(3, 3, 64, 64) * torch.tensor([0.1, 1.0, 9.0]).reshape(3, 1, 1, 1)
    with torch.inference_mode():
        wanted = network.eval()(images)
        torch.testing.assert_close(folder.model(images), wanted, atol=1e-5, rtol=1e-5)
    assert wanted.std(dim=0).min() > 1e-3  # not the bias alone


def assert_refused(folder: Path, value: Any, *facts: str, code: Code | None = "model-damaged") -> None:
    """Importing this content fails in one line of this code (None: another package's) with these facts, and leaves
    nothing."""
    torch.save(value, folder / "c.pth")
    failure: AbstractContextManager[pytest.ExceptionInfo[UserError]] = pytest.raises(UserError)
    with failure if code is None else fails(code) as caught:
        main(["import", "--checkpoint", str(folder / "c.pth"), "--out", str(folder / "m")])
    assert all(fact in str(caught.value) for fact in ("c.pth", *facts))
    assert [path.name for path in folder.iterdir()] == ["c.pth"]


def test_resnet50_and_then_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    network = Script("resnet50")
    with torch.no_grad():  # an untrained network's probabilities are 0 and 1, which would all look alike
        network.model.fc.weight /= network.eval()(torch.rand(1, 3, 64, 64)).abs().max()
    folder = import_it(tmp_path, network)
    assert_same_logits(folder, network)
    assert folder.labels.genres == GENRES and folder.thresholds.tolist() == [0.5] * 3
    assert folder.config["architecture"] == "resnet50" and folder.config["poster_toolkit"]["epoch"] == 7
    out = capsys.readouterr().out
    assert "resnet50, linear head, 64 pixels" in out and "named the most probable genre" in out
    assert "imported by poster-toolkit" in (tmp_path / "m" / "README.md").read_text()

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8))
    picture.save(tmp_path / "poster.png")
    given = ["predict", "-v", "-m", tmp_path / "m", "-i", tmp_path / "poster.png"]
    run = posters_command(*given, "-f", "json", "-o", tmp_path / "o.json")
    assert run.returncode == 0, run.stderr
    # The script's own evaluation transform.
    transform = v2.Compose(
        [
            v2.Resize((64, 64)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with torch.inference_mode():
        wanted = sigmoid(network.eval()(transform(picture)[None]).numpy())[0]
    found = json.loads((tmp_path / "o.json").read_text())["predictions"][0]["probabilities"]
    assert set(found) == set(GENRES)
    np.testing.assert_allclose([found[genre] for genre in GENRES], wanted, atol=1e-4)
    assert wanted.min() > 0.01 and np.ptp(wanted) > 0.05


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_other_depths_are_recognised(tmp_path: Path, name: str):
    network = Script(name)
    folder = import_it(tmp_path, network)
    assert folder.config["architecture"] == name
    assert_same_logits(folder, network)


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_deep_ones_by_their_shapes(name: str):
    from toolkit.export.legacy_checkpoint import recognise

    with torch.device("meta"):
        state = {key.removeprefix("model."): tensor for key, tensor in Script(name).state_dict().items()}
    assert recognise(state, 3, Path("c.pth"))[0] == name


@pytest.mark.parametrize("hidden", [(16, 8), (16, 12, 8)])
def test_a_head_of_several_layers(tmp_path: Path, hidden: tuple[int, ...]):
    network = Script(hidden=hidden)
    folder = import_it(tmp_path, network)
    head = folder.config["poster_toolkit"]["head"]
    assert head == {"kind": "mlp", "hidden": list(hidden), "dropout": 0.5, "members": 1}
    assert_same_logits(folder, network)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.model.", "model._orig_mod."])
def test_wrappers_names(tmp_path: Path, prefix: str):
    network = Script()
    state = {prefix + name.removeprefix("model."): tensor for name, tensor in network.state_dict().items()}
    assert_same_logits(import_it(tmp_path, network, model_state_dict=state), network)


def test_counters_may_lack(tmp_path: Path):
    network = Script()
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert_same_logits(import_it(tmp_path, network, model_state_dict=state), network)


@pytest.mark.parametrize("learned", [[0.2, 0.4, 0.6], np.array([0.2, 0.4, 0.6]), torch.tensor([0.2, 0.4, 0.6])])
def test_learned_thresholds(tmp_path: Path, learned: Any):
    folder = import_it(tmp_path, Script(), learned_thresholds=learned, learn_thresholds=True)
    np.testing.assert_allclose(folder.thresholds, [0.2, 0.4, 0.6], atol=1e-7)
    assert folder.decisions.source == "learned by the earlier script"


def test_thresholds_of_older_versions_are_logits(tmp_path: Path):
    network = Script(thresholds=True)
    changed = content(network, learn_thresholds=True)
    del changed["learned_thresholds"]
    folder = import_it(tmp_path, network, **changed)
    np.testing.assert_allclose(folder.thresholds, sigmoid(np.array([-1.0, 0.0, 1.0])), atol=1e-7)
    assert_same_logits(folder, network)


def test_thresholds_that_were_not_learned_are_not_used(tmp_path: Path):
    config = {"image_size": 64, "fixed_threshold": 0.35}
    folder = import_it(tmp_path, Script(thresholds=True), learn_thresholds=False, config=config)
    assert folder.thresholds.tolist() == [0.35] * 3 and folder.preprocessing.image_size == 64


def test_the_script_saw_the_whole_poster(tmp_path: Path):
    folder = import_it(tmp_path, Script())
    assert folder.preprocessing.fit == "stretch"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8))
    wanted = np.asarray(v2.Resize((64, 64))(image))
    assert np.array_equal(folder.preprocessing.square(image), wanted)


def test_what_does_not_fit_is_refused(tmp_path: Path):
    whole = content(Script())
    torch.save(whole, tmp_path / "whole.pth")  # nothing but what is changed below is wrong with it
    assert main(["import", "--checkpoint", str(tmp_path / "whole.pth"), "--out", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "refused"
    folder.mkdir()
    state = whole["model_state_dict"]
    assert_refused(folder, [1, 2], "model_state_dict", "--model.weights", code="path-unreadable")
    assert_refused(folder, {"model_state_dict": None}, "model_state_dict", code="path-unreadable")
    assert_refused(folder, {**whole, "mlb": None}, "MultiLabelBinarizer", code="labels-invalid")
    four = {**whole, "mlb": binarizer(("a", "b", "c", "d")), "num_classes": 4}
    assert_refused(folder, four, "3 outputs", "4 genres", code="labels-invalid")
    assert_refused(folder, {**whole, "mlb": binarizer((1, 2, 3))}, "classes_", "1", code="labels-invalid")
    assert_refused(folder, {**whole, "num_classes": 5}, "num_classes 5", "3 genres", code="labels-invalid")
    assert_refused(folder, {**whole, "config": {"image_size": (224, 160)}}, "image_size is 224x160")
    assert_refused(folder, {**whole, "learned_thresholds": [0.5, 0.5]}, "learned_thresholds", "3 finite numbers")
    assert_refused(folder, {**whole, "learned_thresholds": [0.5, 0.5, 1.5]}, "thresholds", "0.5 to 1.5")
    assert_refused(folder, {**whole, "learned_thresholds": "x"}, "learned_thresholds")
    assert_refused(folder, {**whole, "epoch": "last"}, "epoch", "number")
    assert_refused(folder, {**whole, "model_state_dict": {}}, "resnet18", "0 tensors", code="model-unfit")
    extra = {**whole, "model_state_dict": {**state, "extra.weight": torch.ones(1)}}
    assert_refused(folder, extra, "resnet18", code="model-unfit")
    assert_refused(folder, {**whole, "model_state_dict": {**state, "model.fc.bias": None}}, "'model.fc.bias'", "tensor")
    twice = {**whole, "model_state_dict": {**state, "module.model.fc.bias": torch.ones(3)}}
    assert_refused(folder, twice, "'fc.bias'", "twice")
    nan = torch.full((3,), torch.nan)
    assert_refused(folder, {**whole, "model_state_dict": {**state, "model.fc.bias": nan}}, "not finite", code=None)
    unbiased = {k: v for k, v in state.items() if k != "model.fc.bias"}
    assert_refused(folder, {**whole, "model_state_dict": unbiased}, "(fc.weight)", code="model-unfit")
    narrow = {**state, "model.fc.weight": torch.ones(3, 8)}
    assert_refused(folder, {**whole, "model_state_dict": narrow}, "(fc.bias, fc.weight)", code="model-unfit")


def nested(times: int) -> list[Any]:
    """A list that holds itself ``2 ** times`` times over once it is written out."""
    value: list[Any] = [1, 1]
    for _ in range(times):
        value = [value, value]
    return value


def test_hostile_values_are_one_line_each(tmp_path: Path):
    whole = content(Script())
    state = whole["model_state_dict"]
    light = {**whole, "model_state_dict": {}}  # what is read before weights are looked at

    def with_state(**changes: Any) -> dict[str, Any]:
        renamed = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        return {**whole, "model_state_dict": {**state, **renamed}}

    bomb, huge = nested(200), 10**400
    refused: list[tuple[Any, Code | None, str]] = [
        ({**light, "epoch": float("inf")}, "model-damaged", "epoch is inf"),
        ({**light, "epoch": -1}, "model-damaged", "epoch is -1"),
        ({**light, "epoch": huge}, "model-damaged", "epoch"),
        ({**light, "epoch": bomb}, "model-damaged", "epoch"),
        ({**light, "num_classes": huge}, "model-damaged", "num_classes"),
        ({**light, "config": bomb}, "model-damaged", "config is a list"),
        ({**light, "config": {"image_size": bomb}}, "model-damaged", "image_size is listxlist"),
        ({**light, "config": {"image_size": 0}}, "model-damaged", "image_size is 0"),
        ({**light, "config": {"image_size": 10**6}}, "model-damaged", "1000000, but must be one number from 8"),
        ({**light, "config": {"image_size": huge}}, "model-damaged", "image_size is int"),
        ({**light, "config": {"image_size": True}}, "model-damaged", "image_size is True"),
        ({**light, "config": {"image_size": []}}, "model-damaged", "image_size is "),
        ({**light, "config": {"image_size": 64, "fixed_threshold": "x" * 10**5}}, "model-damaged", "fixed_threshold"),
        ({**whole, "config": {"image_size": 64, "fixed_threshold": float("nan")}}, "model-damaged", "nan to nan"),
        ({**light, "learned_thresholds": [huge] * 3}, "model-damaged", "learned_thresholds"),
        ({**light, "learned_thresholds": bomb}, "model-damaged", "learned_thresholds"),
        ({**light, "learned_thresholds": torch.zeros(1).expand(10**10)}, "model-damaged", "learned_thresholds"),
        ({**light, "learned_thresholds": torch.zeros(3, device="meta")}, "model-damaged", "learned_thresholds"),
        ({**light, "mlb": binarizer(("a", "b", ""))}, "labels-invalid", "e.g. ''"),
        ({**light, "mlb": binarizer(("a", "b", "x" * 5000))}, "labels-invalid", "e.g. 'xxx"),
        (with_state(model__fc__weight=torch.zeros(())), "model-unfit", "(fc.bias, fc.weight)"),
        (with_state(model__fc__weight=torch.zeros(3)), "model-unfit", "(fc.bias, fc.weight)"),
        (with_state(model__fc__weight=torch.zeros(1).expand(10**6, 10**6)), None, "'fc.weight' is not a plain array"),
        (with_state(model__fc__weight=torch.zeros(3, 512).to_sparse()), None, "'fc.weight' is not a plain array"),
        (with_state(model__fc__weight=torch.zeros(3, 512, device="meta")), None, "'fc.weight' is not a plain array"),
        (
            with_state(model__fc__weight=torch.zeros(3, 512, dtype=torch.int64)),
            None,
            "'fc.weight' has type int64, but weights must be floating-point numbers",
        ),
        (
            with_state(model__conv1__weight=torch.zeros(64, 3, 7, 7, dtype=torch.complex64)),
            None,
            "'conv1.weight' has type complex64",
        ),
        (with_state(model__bn1__running_var=-torch.ones(64)), None, "'bn1.running_var' contains variances below 0"),
        ({**whole, "model_state_dict": {(1, 2): torch.ones(1)}}, "model-damaged", "contains tuple"),
        (with_state(**{f"model__fc__{n}__weight": torch.ones(2, 2) for n in range(70)}), "model-unfit", "(fc.0.weight"),
    ]
    for value, code, fact in refused:
        assert_refused(tmp_path, value, fact, code=code)


def test_an_unfitted_binarizer(tmp_path: Path):
    from sklearn.preprocessing import MultiLabelBinarizer

    assert_refused(tmp_path, {**content(Script()), "mlb": MultiLabelBinarizer()}, "classes_", code="labels-invalid")


def test_nothing_is_overwritten(tmp_path: Path):
    torch.save(content(Script()), tmp_path / "c.pth")
    command = ["import", "--checkpoint", str(tmp_path / "c.pth"), "--out"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for out in (tmp_path / "full", tmp_path / "c.pth"):
        with fails("path-exists", "--out", out):
            main([*command, str(out)])
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert main([*command, str(tmp_path / "empty")]) == 0


def test_a_truncated_file_is_one_line(tmp_path: Path):
    path = tmp_path / "c.pth"
    torch.save(content(Script()), path)
    path.write_bytes(path.read_bytes()[:100_000])
    run = posters_command("import", "--checkpoint", path, "--out", tmp_path / "m")
    assert run.returncode == 2 and len(error_lines(run)) == 1
    assert "truncated" in run.stderr and not (tmp_path / "m").exists()
