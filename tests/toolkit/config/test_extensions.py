"""Code of users as MODULE:CLASS: what is imported when, what is refused, and a run that uses all kinds."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from failing import fails
from forked import run_forked
from PIL import Image
from toolkit_helpers import TINY, clean_env, error_lines, make_model_folder, parse_train
from torch import nn

import toolkit
from shards.dataset.labels import LabelSet
from shards.errors import UserError
from toolkit.config import extensions
from toolkit.config.validation import check_config
from toolkit.model_folder.folder import load_model_folder
from toolkit.models.heads import HeadSpec
from toolkit.training.losses import build_loss

#: What a user writes.
OWN = (Path(__file__).parents[1] / "code_of_users.py").read_text(encoding="utf-8")
#: A run that uses all kinds of classes that a configuration can name.
ALL = [
    "--loss.name=own_code:Loss", "--loss.options.gamma=2", "--augment.name=own_code:Invert",
    "--augment.options.probability=0.3", "--metric.name=own_code:FBeta", "--metric.options.beta=1",
    "--model.head=own_code:Head", "--model.head_options.width=4", "--optim.name=own_code:Sgd",
    "--optim.options.sign=true", "--optim.lr=0.01",
]  # fmt: skip


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder has own_code.py. Afterwards nothing of it is known."""
    (tmp_path / "own_code.py").write_text(OWN)
    (tmp_path / "broken_code.py").write_text("x = 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(extensions, "_USED", {})
    monkeypatch.setattr(extensions, "_TRUSTED", set())
    yield tmp_path
    for name in ("own_code", "broken_code"):
        sys.modules.pop(name, None)


def asked(*words: str) -> None:
    parse_train(["--shards", "S", "--out", "R", *TINY, *words])


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--loss.name=own_cod:Loss"], ["loss.name", "no module own_cod", "'own_code'"]),
        (["--loss.name=broken_code:Loss"], ["broken_code cannot be imported", "ZeroDivisionError", "line 1"]),
        (["--loss.name=own_code:Los"], ["own_code.py has no Los", "'Loss'"]),
        (["--loss.name=own_code:CONSTANT"], ["is a int, not a class"]),
        (["--loss.name=os:system"], ["os:system", "not a class"]),
        (["--loss.name=own_code:Invert"], ["subclass of torch.nn.Module"]),
        (["--augment.name=own_code:GammaOptions"], ["augment.name", "__call__"]),
        (["--optim.name=own_code:Loss"], ["optim.name", "torch.optim.Optimizer"]),
        (["--loss.name=own_code:Loss", "--loss.options.gama=2"], ["loss.options.gama", "'gamma'"]),
        (["--loss.name=own_code:Loss", "--loss.options.gamma=x"], ["loss.options", "float", "gamma"]),
        (["--loss.name=own_code:Focal", "--loss.options.gamma=-1"], ["loss.options.gamma must be positive"]),
        (["--loss.name=own_code:Needy"], ["loss.options.level is missing"]),
        (["--optim.options.beta=[0.8,0.9]"], ["optim.options.beta", "'betas'"]),
        (["--metric.options.beta=1"], ["metric.options needs metric.name"]),
        (["--metric.name=beta"], ["metric.name must be MODULE:CLASS"]),
        (["--model.head=mpl"], ["model.head must be mlp", "mpl"]),
        (["--model.head_options.width=1"], ["model.head_options", "mlp has no options"]),
        (["--model.head=own_code:Head", "--model.prior=true"], ["model.prior", "own_code:Head"]),
    ],
)
def test_what_cannot_be_meant(own_code: Path, words: list[str], facts: list[str]):
    with pytest.raises(UserError) as found:
        asked(*words)
    for fact in facts:
        assert fact in str(found.value)


@pytest.mark.usefixtures("own_code")
def test_options_have_the_types_of_the_constructor():
    config = parse_train(["--shards", "S", "--out", "R", *TINY, *ALL, "--loss.options.widths=[1, 2]"]).config
    loss = build_loss(config.loss, torch.tensor([1.0, 2.0]).numpy(), 4)
    assert loss(torch.zeros(3, 2).half(), torch.zeros(3, 2)).dtype == torch.float32
    config.loss.options = {"gamma": float("nan")}
    with fails("option-value", "loss.options.gamma must be finite"):
        check_config(config)


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--loss.name=own_code:Scalar"], ["returned () for logits", "(18,)"]),
        (["--augment.name=own_code:Grey"], ["own_code:Grey returned (18, 32, 32)", "images, of shape (18, 3, 32, 32)"]),
        (["--loss.name=own_code:Loss", "--loss.smoothing=0.1"], ["loss.smoothing has no effect"]),
        (["--model.head=own_code:Wrong"], ["own_code:Wrong returned (2, 8)", "(2, 7)"]),
        (["--model.head=own_code:Broken"], ["ZeroDivisionError: no such thing", "own_code.py, line"]),
    ],
)
def test_what_a_training_finds(own_code: Path, shard_set: Path, words: list[str], facts: list[str]):
    command = ["-m", "toolkit", "train", "--shards", shard_set, "--out", own_code / "R", *TINY, *words]
    (line,) = error_lines(run_forked(command, [clean_env()], 240, own_code))
    for fact in facts:
        assert fact in line


@pytest.fixture(scope="module")
def run(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with own_code.py, and a run R that uses all of it."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "own_code.py").write_text(OWN)
    done = posters(folder, "train", "--shards", shard_set, "--out", "R", *TINY, *ALL, "--train.epochs=2")
    assert done.returncode == 0, done.stderr
    return folder


def posters(folder: Path, *words: object) -> CompletedProcess[str]:
    return run_forked(["-m", "toolkit", *words], [clean_env()], 240, folder)


def test_a_run_uses_and_records_all_of_it(run: Path):
    config = json.loads((run / "R/model/config.json").read_text())["poster_toolkit"]
    assert config["head"]["kind"] == "own_code:Head" and config["head"]["options"] == {"width": 4}
    assert config["training_config"]["loss"] == {
        "name": "own_code:Loss", "options": {"gamma": 2}, "smoothing": 0.0
    }  # fmt: skip
    with open(run / "R/epochs.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [0 <= float(row["val_FBeta"]) <= 1 for row in rows] == [True, True]
    assert "FBeta" in json.loads((run / "R/model/metrics-val.json").read_text())["own"]


def test_a_run_resumes_with_the_same_names_only(run: Path, shard_set: Path):
    again = ["train", "--shards", shard_set, "--out", "R", *TINY, "--train.epochs=3", "--resume"]
    (line,) = error_lines(posters(run, *again))  # the checkpoint names the classes, but the user does not
    assert "own_code" in line and "cannot resume" in line
    done = posters(run, *again, "--config", "R/config.yaml", "--train.epochs=3")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["predict", "evaluate", "tune", "export", "push", "app", "audit"])
def test_a_model_with_code_of_others_is_refused_in_one_line(
    command: str, hostile: Path, posters_of: Path, shard_set: Path
):
    """The module is in the model folder and in the current folder. No command imports it."""
    if command == "app":
        pytest.importorskip("gradio")  # the extra `app`
    images = posters_of / "images"
    each: dict[str, list[object]] = {
        "predict": ["-d", images],
        "evaluate": ["--shards", shard_set],
        "tune": ["--shards", shard_set],
        "export": [],
        "push": ["--repo", "a/b"],
        "app": [],
        "audit": ["--images", images, "--cleaned", images],
    }
    (line,) = error_lines(posters(hostile, command, "--model", ".", *each[command]))
    assert line == ("error: . uses stealing:Head; its code is only loaded with --trust-code stealing")
    assert not (hostile / "stolen").exists()


@pytest.fixture
def posters_of(drawn_posters: Path) -> Path:
    return drawn_posters


@pytest.fixture
def hostile(model_folder: Path, tmp_path: Path) -> Path:
    """A model folder whose head is in a module in the folder. Its import leaves a file."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "stealing.py").write_text("open('stolen', 'w').close()\nfrom torch.nn import Linear as Head\n")
    rename_head(folder, "stealing:Head")
    return folder


def rename_head(folder: Path, kind: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["poster_toolkit"]["head"]["kind"] = kind
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("own_code")
def test_other_modules_that_the_user_trusts_do_not_help(hostile: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(hostile)
    asked("--loss.name=torch.nn:Module")
    for trusted in ((), ("stealin",), ("stealing.more",)):
        with fails("weights-refused", "trust_code stealing"):
            toolkit.load_model(hostile, trust_code=trusted)
    for name in ("os:system", "subprocess:Popen"):
        rename_head(hostile, name)
        with fails("weights-refused", name):
            load_model_folder(hostile)
        with fails("option-value", name):
            toolkit.load_model(hostile, trust_code=name.partition(":")[0])
    for name in ("os:system('x')", "os.system", "../stealing:Head"):
        rename_head(hostile, name)
        with fails("model-damaged", "poster_toolkit.head.kind"):
            load_model_folder(hostile)
    assert "stealing" not in sys.modules and not (hostile / "stolen").exists()


def test_the_configuration_of_a_model_is_not_imported(tmp_path: Path):
    """Loss, augmentation and metric are not needed for a prediction."""
    model = tmp_path / "model"
    make_model_folder(model, LabelSet(("a", "b")), HeadSpec("linear", (), 0.0))
    config = json.loads((model / "config.json").read_text())
    config["poster_toolkit"]["training_config"] = {
        "loss": {"name": "stealing:Loss"}, "augment": {"name": "stealing:X"}, "metric": {"name": "stealing:Y"},
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    (model / "stealing.py").write_text("open('stolen', 'w').close()\n")
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 60)).save(picture)
    done = posters(model, "predict", "--model", ".", "--image", picture)
    assert done.returncode == 0 and not (model / "stolen").exists()


def test_trusted_code_is_used(run: Path, shard_set: Path, drawn_posters: Path):
    image = next((drawn_posters / "images").glob("p*"))
    trust = ["--model", "R/model", "--trust-code", "own_code"]
    shown = posters(
        run, "predict", *trust, "--image", image, "--format", "own_code:Tabs", "--format-options", "between=+"
    )
    assert shown.stdout.startswith(f"{image}\t") and "|" not in shown.stdout, shown.stderr
    found = posters(run, "evaluate", *trust, "--shards", shard_set, "--metric", "own_code:FBeta", "--out", "m.json")
    assert "FBeta: 0." in found.stdout, found.stderr
    assert 0 <= json.loads((run / "m.json").read_text())["own"]["FBeta"] <= 1
    for words, fact in (
        (["--format", "own_code:Taken"], "has the ending .csv, which is the ending of csv"),
        (["--format", "own_code:Loss"], "Format"),
        (["--format", "own_code:Tabs", "--format-options", "betwen=+"], "'between'"),
        (["--format-options", "a=1"], "needs --format"),
        (["--format", "tabs"], "must be parquet, csv, jsonl, json or MODULE:CLASS"),
    ):
        (line,) = error_lines(posters(run, "predict", *trust, "--image", image, *words))
        assert fact in line


@pytest.mark.usefixtures("own_code")
def test_a_registered_class_needs_no_trust(run: Path, monkeypatch: pytest.MonkeyPatch):
    with fails("weights-refused", "own_code:Head"):
        toolkit.load_model(run / "R/model")
    monkeypatch.syspath_prepend(run)
    module = importlib.import_module("own_code")
    assert toolkit.register(module.Head) is module.Head
    model = toolkit.load_model(run / "R/model")
    assert isinstance(model.model, nn.Module) and len(model.genres) == 7
