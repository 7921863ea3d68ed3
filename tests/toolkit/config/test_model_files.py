"""Model folders from strangers: whatever their files hold, there is one line, or the right answer, and soon."""

from __future__ import annotations

import copy
import json
import math
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing import fails
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toolkit_helpers import make_model_folder, some_decisions

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.storage.files import sha256_file, write_json
from toolkit.cli.commands import read
from toolkit.cli.main import main
from toolkit.config.model_files import check_agreement, model_folder_of, read_config
from toolkit.metrics.helpers import sigmoid
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import load_labels, load_model_folder
from toolkit.models.heads import HeadSpec

GENRES = ("Comedy", "Drama", "War")
WEIGHTS = "model.safetensors"
#: Values that a file may hold where another is expected, as JSON text: Python's own writer refuses some.
HOSTILE = [
    "null", "true", "0", "-1", "1.5", "1e-320", "1e400", "-1e400", "1" + "0" * 400, "NaN", "Infinity", '""', '"x"',
    '"\\ud800"', '"\\u0000"', '"' + "x" * 20_000 + '"', "[]", "[[]]", "{}", "[null]", "[1, 2, 3]", '["a", "a", "a"]',
    "[0.1, 0.2, 1e999]", '{"a": 1}', "[" * 100_000 + "]" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "[0", "0.25",
    "3", "32", "4096", "1000000", '"hf-hub:user/name"', '"mlp"', '"platt"', '"../../etc/passwd"',
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    return make_model_folder(folder, LabelSet(GENRES), HeadSpec("mlp", (8,), 0.0), decisions=some_decisions(3))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def paths_of(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all values in a JSON value, itself included."""
    yield before
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from paths_of(part, (*before, key))


def replaced(value: Any, path: tuple[Any, ...], text: str) -> str:
    """The JSON text of ``value`` with ``text`` at ``path``."""
    if not path:
        return text
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "<HERE>"
    return json.dumps(changed).replace('"<HERE>"', text)


def refusal(work: Callable[[], Any]) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        work()
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000, message
    return message


def answer(folder: Path) -> tuple[Any, ...]:
    """What the JSON files of a folder say; every number of it is usable."""
    labels, decisions = load_labels(folder)
    config, _ = read_config(folder)
    check_agreement(config, labels.genres, folder)
    cfg, head = config.pretrained_cfg, config.poster_toolkit.head
    numbers: list[Any] = [
        decisions.thresholds,
        decisions.scale,
        decisions.bias,
        [decisions.global_threshold],
        cfg.mean,
        cfg.std,
    ]
    assert all(np.isfinite(np.asarray(values, np.float64)).all() for values in numbers)
    assert ((decisions.thresholds >= 0) & (decisions.thresholds <= 1)).all() and (decisions.scale > 0).all()
    assert min(cfg.std) > 0 and 0 < cfg.crop_pct <= 1 and cfg.input_size[1] == cfg.input_size[2] <= 4096
    assert labels.genres == GENRES and head.kind in ("mlp", "linear", "levels", "ensemble")
    assert np.isfinite(decisions.probabilities(np.array([[-30.0, 0.0, 30.0]], np.float32))).all()
    return json.dumps(decisions.to_dict()), repr(config)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_anywhere_is_one_line_or_right(folder: Path, whole: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(["labels.json", "config.json"]))
    good = json.loads((whole / name).read_text())
    path = data.draw(st.sampled_from(sorted(paths_of(good), key=str)))
    text = data.draw(st.sampled_from(HOSTILE) | st.floats(width=64).map(repr) | st.integers().map(str))
    (folder / name).write_text(replaced(good, path, text))
    try:
        answer(folder)
    except UserError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 1000 and name.partition(".")[0] in message, message
    finally:
        shutil.copy(whole / name, folder / name)


def test_keys_of_later_versions_are_ignored(folder: Path, whole: Path):
    for name, places in (("labels.json", [()]), ("config.json", [(), ("poster_toolkit",), ("pretrained_cfg",)])):
        raw = json.loads((folder / name).read_text())
        for place in places:
            inner = raw
            for key in place:
                inner = inner[key]
            inner["of_a_later_version"] = {"deep": [1, {"er": None}]}
        write_json(folder / name, raw)
    assert answer(folder) == answer(whole)
    assert load_model_folder(folder).config["of_a_later_version"]


def put(folder: Path, name: str, **changes: Any) -> None:
    """Change values by dotted keys; the labels' fingerprint and the weights' digest are made to fit."""
    raw = json.loads((folder / name).read_text())
    for dotted, value in changes.items():
        inner = raw
        *way, last = dotted.split("__")
        for key in way:
            inner = inner[key]
        inner[last] = value
    if "genres" in changes and name == "labels.json" and all(isinstance(g, str) for g in raw["genres"]):
        raw["fingerprint"] = LabelSet(tuple(raw["genres"])).fingerprint
    (folder / name).write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("labels.json", {"genres": [1, 2, 3]}, "genres[0]: expected str, got int"),
        ("labels.json", {"genres": [["a"], ["b"], ["c"]]}, "genres[0]: expected str, got array"),
        ("labels.json", {"genres": []}, "genres: expected array of length >= 1"),
        ("labels.json", {"genres": ["a", "b", "a"]}, "its genres repeat 'a'"),
        ("labels.json", {"genres": ["a", "", "b"]}, "genres[1]: expected str of length >= 1"),
        ("labels.json", {"genres": ["x", "y", "z"]}, "label_names of config.json are not the genres of labels.json"),
        ("labels.json", {"genres": ["x", "y"], "thresholds": [0.5, 0.5], "calibration": {"method": "none"}},
         "config.json has num_classes 3, but labels.json has 2 genres"),
        ("labels.json", {"thresholds": [0.5, 0.5]}, "it has 2 thresholds for 3 genres"),
        ("labels.json", {"thresholds": [0.5, -0.1, 0.5]}, "thresholds[1]: expected float >= 0"),
        ("labels.json", {"calibration__method": "isotonic"}, "invalid enum value 'isotonic'"),
        ("config.json", {"architecture": "hf-hub:user/name"}, "architecture"),
        ("config.json", {"architecture": "local-dir:/tmp"}, "architecture"),
        ("config.json", {"architecture": "resnet99"}, "timm has no model 'resnet99'; did you mean"),
        ("config.json", {"architecture": 5}, "architecture: expected str, got int"),
        ("config.json", {"architecture": "vit_giant_patch14_224"}, "does not fit config.json: it lacks"),
        ("config.json", {"architecture": "test_resnet.no_such_tag"}, "timm cannot build test_resnet.no_such_tag"),
        ("config.json", {"num_classes": 4}, "config.json has num_classes 4, but labels.json has 3 genres"),
        ("config.json", {"pretrained_cfg__crop_pct": 5}, "crop_pct: expected float <= 1"),
        ("config.json", {"pretrained_cfg__crop_pct": 0}, "crop_pct: expected float >= 0.1"),
        ("config.json", {"pretrained_cfg__std": [0.2, -0.2, 0.2]}, "std[1]: expected float >= "),
        ("config.json", {"pretrained_cfg__std": [0.2, 0.2, 0]}, "std[2]: expected float >= "),
        ("config.json", {"pretrained_cfg__mean": [0.2, math.nan, 0.2]},
         "pretrained_cfg.mean[1]: expected a finite number, got nan"),
        ("labels.json", {"thresholds": [0.5, math.inf, 0.5]}, "thresholds[1]: expected a finite number, got inf"),
        ("config.json", {"pretrained_cfg__mean": [0.2, 0.2]}, "mean: expected array of length 3"),
        ("config.json", {"pretrained_cfg__input_size": [3, 0, 0]}, "input_size[1]: expected int >= 8"),
        ("config.json", {"pretrained_cfg__input_size": [3, 10**6, 10**6]}, "input_size[1]: expected int <= 4096"),
        ("config.json", {"pretrained_cfg__input_size": [3, 32, 64]}, "32 x 64 is not a square"),
        ("config.json", {"pretrained_cfg__input_size": [1, 32, 32]}, "input_size[0]: invalid enum value 1"),
        ("config.json", {"pretrained_cfg__input_size": [3, 4096, 4096], "pretrained_cfg__crop_pct": 0.1},
         "makes resized images larger than 16384 pixels"),
        ("config.json", {"pretrained_cfg__crop_mode": "border"}, "invalid enum value 'border'"),
        ("config.json", {"poster_toolkit__head__kind": "tree"}, "no head 'tree'"),
        ("config.json", {"poster_toolkit__head__hidden": [1] * 300_000}, "hidden: expected array of length <= 64"),
        ("config.json", {"poster_toolkit__head__hidden": [10**12]}, "hidden[0]: expected int <= 65536"),
        ("config.json", {"poster_toolkit__head__hidden": [65536] * 64}, "does not fit config.json"),
        ("config.json", {"poster_toolkit__head__kind": "ensemble", "poster_toolkit__head__members": 1024},
         "the head alone needs 4096"),
        ("config.json", {"poster_toolkit__head__members": 10**9}, "members: expected int <= 1024"),
        ("config.json", {"poster_toolkit__head__dropout": 1}, "dropout: expected float < 1"),
        ("config.json", {"poster_toolkit__weights_sha256": "/etc/passwd"}, "weights_sha256: expected str matching"),
        ("config.json", {"poster_toolkit": None}, "poster_toolkit: expected object, got null"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line(folder: Path, name: str, changes: dict[str, Any], words: str):
    put(folder, name, **changes)
    assert words in refusal(lambda: load_model_folder(folder))


def test_what_timm_would_fetch_or_be_given_plays_no_part(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    before = load_model_folder(folder)
    urls = {"url": "http://127.0.0.1:1/x.pth", "hf_hub_id": "user/name", "file": "/etc/passwd", "custom_load": True}
    put(
        folder, "config.json", model_args={"img_size": 10**6, "pretrained": True, "checkpoint_path": "/etc/passwd"},
        **{f"pretrained_cfg__{key}": value for key, value in urls.items()},
    )  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(load_model_folder(folder).model(images), before.model(images))


def test_a_huge_file_is_not_read(folder: Path):
    with open(folder / "labels.json", "ab") as stream:
        stream.truncate(2**33)
    assert "has 8192 MB, over the limit of 64" in refusal(lambda: load_model_folder(folder))


# --- weights ----------------------------------------------------------------------------------------------------------


def fit_digest(folder: Path) -> None:
    put(folder, "config.json", poster_toolkit__weights_sha256=sha256_file(folder / WEIGHTS))


def header_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a valid safetensors file"),
        (struct.pack("<Q", 2**60), "its header has 1152921504606846976 bytes, over the limit"),
        (header_of(b"{"), "is not a valid safetensors file"),
        (header_of(b"[]"), "Expected object, got array"),
        (header_of(b'{"a": 1}'), "[...]: expected object, got int"),
        (header_of(b"[" * 100_000), "is not a valid safetensors file"),
        (header_of(b'{"a":' * 100_000), "is not a valid safetensors file"),
        (
            header_of(b'{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}'),
            "a.shape[0]: expected a finite number, got inf",
        ),
        (header_of(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'), "it has 1 tensors, but the head"),
        (160_000, "over the limit of 8388608"),
        (20_000, "does not fit config.json: it lacks"),
    ],
    ids=range(11),
)
def test_headers_that_are_none(folder: Path, content: bytes | int, words: str):
    if isinstance(content, int):
        entry = b'"%d":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        content = header_of(b"{" + b",".join(entry % number for number in range(content)) + b"}")
    (folder / WEIGHTS).write_bytes(content)
    fit_digest(folder)
    assert words in refusal(lambda: load_model_folder(folder))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    fit_digest(folder)


NAME = "layer1.0.conv1.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(NAME), f"it lacks 1 tensors, e.g. '{NAME}'"),
        (lambda state: state.update(extra=torch.zeros(1)), "it has unknown 1 tensors, e.g. 'extra'"),
        (lambda state: state.update({NAME: torch.zeros(1)}), f"it has other shapes for 1 tensors, e.g. '{NAME}'"),
        (lambda state: state.update({NAME: state[NAME].long()}), f"it has 'I64' numbers in '{NAME}'"),
        (
            lambda state: state[NAME].view(-1)[:3].fill_(torch.nan),
            f"its tensor '{NAME}' contains 3 values that are not",
        ),
        (lambda state: state["fc.0.bias"].fill_(-torch.inf), "its tensor 'fc.0.bias' contains 8 values that are not"),
        (lambda state: state["bn1.running_var"].neg_(), "its tensor 'bn1.running_var' contains variances below 0"),
    ],
    ids=range(7),
)
def test_weights_that_are_not_the_models(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], words: str):
    change_weights(folder, change)
    assert words in refusal(lambda: load_model_folder(folder))


def test_half_precision_is_read(folder: Path):
    change_weights(folder, lambda state: state.update({k: v.half() for k, v in state.items() if v.is_floating_point()}))
    assert load_model_folder(folder).model.get_parameter(NAME).dtype == torch.float32


def commands(model: Path, posters: Path, shards: Path, out: Path) -> dict[str, list[str]]:
    """Every command that shows what a model says."""
    picture = posters / "images" / "p00000.jpg"
    words: dict[str, list[Any]] = {
        "predict": ["predict", "-m", model, "-i", picture, "-o", out / "o.json"],
        "batch": ["predict", "-m", model, "--shards", shards, "--out", out / "predictions"],
        "evaluate": ["evaluate", "--model", model, "--shards", shards],
        "tune": ["tune", "--model", model, "--shards", shards],
        "export": ["export", "--model", model, "--format", "torch-export"],
    }
    return {name: [str(word) for word in command] for name, command in words.items()}


@pytest.fixture
def broken(tmp_path: Path, shard_set: Path) -> Path:
    """Of the shard set's genres, one of which has no finite bias."""
    labels = Manifest.read(shard_set).labels
    model = make_model_folder(tmp_path / "m", labels, HeadSpec("linear", (), 0.0))
    change_weights(model, lambda state: state["fc.bias"][1:2].fill_(torch.inf))
    return model


@pytest.mark.parametrize("name", ["predict", "batch", "evaluate", "tune", "export"])
def test_every_command_ends_with_the_tensors_name(
    broken: Path, name: str, posters: Path, shard_set: Path, tmp_path: Path
):
    before = sorted(path.name for path in broken.iterdir())
    command = commands(broken, posters, shard_set, tmp_path / "out")[name]
    assert "its tensor 'fc.bias' contains 1 values that are not finite" in refusal(lambda: main(command))
    assert sorted(path.name for path in broken.iterdir()) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["predict", "batch", "evaluate", "tune"])
def test_outputs_that_become_infinite_end_with_the_images_names(
    broken: Path, name: str, posters: Path, shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As an overflow in half precision does: no tensor is at fault when the folder is loaded."""
    monkeypatch.setattr("toolkit.model_folder.folder.require_finite", lambda *_: None)
    before = sorted(path.name for path in broken.iterdir())
    message = refusal(lambda: main(commands(broken, posters, shard_set, tmp_path / "out")[name]))
    assert "the model's outputs are not finite for " in message and "p000" in message
    assert sorted(path.name for path in broken.iterdir()) == before
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".lock"]


# --- older folders ----------------------------------------------------------------------------------------------------


def test_a_folder_of_the_first_version_is_read(folder: Path, whole: Path):
    labels = LabelSet(GENRES)
    write_json(
        folder / "labels.json",
        {"genres": list(GENRES), "fingerprint": labels.fingerprint, "thresholds": [0.3, 0.3, 0.3]},
    )
    raw = json.loads((folder / "config.json").read_text())
    del raw["label_names"], raw["poster_toolkit"]["head"]["members"], raw["poster_toolkit"]["epoch"]
    write_json(folder / "config.json", raw)
    loaded = load_model_folder(folder)
    logits = np.array([[0.0, 1.0, -2.0]])
    assert (loaded.decisions.probabilities(logits) == sigmoid(logits)).all()
    assert loaded.thresholds.tolist() == [0.3] * 3
    write_card(folder)
    assert "0.300, unknown" in (folder / "README.md").read_text()


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"num_samples": "many"}', "not json", "[" * 100_000])
def test_metrics_that_are_none_are_left_out_of_the_card(folder: Path, text: str, caplog: pytest.LogCaptureFixture):
    (folder / "metrics-test.json").write_text(text)
    write_card(folder)
    assert "metrics-test.json is not a valid metrics file" in caplog.text
    assert "Metrics on test" not in (folder / "README.md").read_text()


def test_a_run_folder_stands_for_its_model(tmp_path: Path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    assert model_folder_of(tmp_path / "run") == tmp_path / "run"  # no model yet
    (tmp_path / "run" / "model" / "labels.json").touch()
    assert (
        model_folder_of(tmp_path / "run") == tmp_path / "run" / "model" == model_folder_of(tmp_path / "run" / "model")
    )
    assert model_folder_of("absent") == Path("absent")


@pytest.mark.parametrize("command", ["evaluate", "tune", "predict", "app", "audit", "export", "push"])
def test_every_command_with_a_model_takes_a_run(command: str, model_folder: Path, tmp_path: Path):
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    more = {
        "evaluate": ["--shards", "S", "--compare", str(tmp_path / "run")],
        "tune": ["--shards", "S"],
        "predict": ["p.jpg"],
        "audit": ["--images", str(tmp_path), "--cleaned", str(tmp_path)],
        "push": ["--repo", "USER/NAME"],
    }
    options = read([command, "-m", str(tmp_path / "run"), *more.get(command, [])])[1]
    assert options.model == tmp_path / "run" / "model" == getattr(options, "compare", options.model)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        ("set/manifest.json", "is a shard set, not a model folder; pass it with --shards"),
        (
            "run/config.yaml run/checkpoints/x",
            "is a run folder, not a model folder; its training has written no model yet",
        ),
        ("run/state.pt", "is a checkpoint of a run, not a model folder; name the run folder"),
        ("posters/a.jpg", "is a folder of images, not a model folder; predict its genres with `posters predict"),
        ("x.pth", "is a checkpoint file, not a model folder; `posters import --checkpoint"),
        ("x.csv", "is a table, not a model folder; name a model folder instead"),
        ("m.onnx", "is an ONNX file, not a model folder; name the model folder"),
        ("w.safetensors", "`posters train --model.weights"),
        ("empty/notes.txt", "lacks config.json"),
    ],
)
def test_something_else_as_model(names: str, remedy: str, tmp_path: Path):
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = tmp_path / names.split()[0].partition("/")[0]
    with fails("model-missing", given, remedy):
        load_model_folder(given)
