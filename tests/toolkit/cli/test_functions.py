"""The commands as functions of a program: ``toolkit.build_shards``, ``train``, ``evaluate``, ``compare`` and others."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from failing import fails
from toolkit_helpers import ROOT, TINY, posters_command

import toolkit
from shards.storage.files import sha256_file
from toolkit.cli.functions import config_of
from toolkit.config.schema import Config, OptimConfig

#: The keys of TINY in Python, for two epochs.
SMALL: dict[str, Any] = {
    "model": {"name": "test_resnet", "pretrained": False, "hidden": [8], "freeze": []},
    "data": {"image_size": 32, "workers": 1},
    "train": {"batch_size": 20, "eval_batch_size": 16, "trackers": {}, "epochs": 2},
    "decide": {"thresholds": "global", "calibration": "none"},
}


def weights_of(run: toolkit.Run) -> str:
    return sha256_file(run.model / "model.safetensors")


@pytest.fixture(scope="module")
def shards(drawn_set: Path) -> toolkit.ShardSet:
    return toolkit.open_shards(drawn_set)


@pytest.fixture(scope="module")
def run(shards: toolkit.ShardSet, tmp_path_factory: pytest.TempPathFactory) -> toolkit.Run:
    return toolkit.train(shards, tmp_path_factory.mktemp("python") / "run", SMALL)


def test_a_set_is_built_as_by_the_command(posters: Path, drawn_set: Path, tmp_path: Path):
    given = {"metadata": str(posters / "metadata.csv"), "images": posters / "images", "out": tmp_path / "set"}
    built = toolkit.build_shards(**given, splits=(0.6, 0.2, 0.2), samples_per_shard=20, max_rejected=1.0, workers=1)
    assert built.splits == toolkit.open_shards(drawn_set).splits
    for tar in drawn_set.glob("*.tar"):
        assert sha256_file(tar) == sha256_file(built.path / tar.name)


def test_a_run_has_its_figures(run: toolkit.Run):
    assert list(run.epochs.index) == [1, 2] and run.epoch in (1, 2)
    assert run.monitor == "loss" and run.score == pytest.approx(run.epochs.loc[run.epoch, "val_loss"], rel=1e-4)
    assert run.figures["loss"] == pytest.approx(run.score) and 0 <= run.figures["micro_f1"] <= 1
    printed = run.epochs.loc[run.epoch]
    assert run.cross_fitted == {name: printed[f"val_{name}"] for name in ("loss", "mAP", "micro_f1", "macro_f1")}
    assert run.cross_fitted["micro_f1"] <= run.figures["micro_f1"]  # on the samples that chose the threshold
    assert run.config["train"]["epochs"] == 2 and len(run.log) >= 1
    assert repr(run).endswith(f"loss {run.score:.4g} in epoch {run.epoch})")


def test_a_second_training_equals_one_in_another_process(run: toolkit.Run, drawn_set: Path, tmp_path: Path):
    """Although one with another precision came between, and the user's random numbers are as they were."""
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    other = toolkit.train(drawn_set, tmp_path / "bf16", SMALL, **{"train.precision": "bf16"})
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    again = toolkit.train(str(drawn_set), str(tmp_path / "again"), SMALL)
    command = [*TINY, "--model.freeze=[]", "--train.epochs=2", f"--shards={drawn_set}", f"--out={tmp_path / 'command'}"]
    done = posters_command("train", *command)
    assert done.returncode == 0, done.stderr
    assert weights_of(again) == weights_of(run) == weights_of(toolkit.Run(tmp_path / "command")) != weights_of(other)


def test_the_process_stays_as_it_was(shards: toolkit.ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    def facts() -> list[object]:
        threads = [thread for thread in threading.enumerate() if type(thread).__name__ != "TMonitor"]  # of tqdm
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        logs = logging.getLogger()
        return [threads, handlers, logs.level, list(logs.handlers), warnings.formatwarning, sys.stdout, sys.stderr]

    before, formats = facts(), list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = toolkit.train(shards, tmp_path / "run", SMALL, train={"epochs": 1})
        toolkit.evaluate(run.model, shards)
    assert facts() == before and list(warnings.filters) == formats
    assert capfd.readouterr().out == ""


def test_a_training_in_a_thread(shards: toolkit.ShardSet, tmp_path: Path):
    """Only the main thread may handle signals."""
    found: list[toolkit.Run] = []
    work = threading.Thread(target=lambda: found.append(toolkit.train(shards, tmp_path / "run", SMALL)))
    work.start()
    work.join()
    assert found[0].epoch in (1, 2)


@pytest.fixture
def pressed_ctrl_c() -> Iterator[None]:
    """Ctrl-C once the training handles it."""
    before = signal.getsignal(signal.SIGINT)

    def press() -> None:
        while signal.getsignal(signal.SIGINT) is before and not over.is_set():
            time.sleep(0.01)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    over, presser = threading.Event(), threading.Thread(target=press)
    presser.start()
    yield
    over.set()
    presser.join()


def test_ctrl_c_saves_a_checkpoint(
    run: toolkit.Run, shards: toolkit.ShardSet, tmp_path: Path, pressed_ctrl_c: None
) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"resume=True\) continues"):
        toolkit.train(shards, tmp_path / "run", SMALL)
    assert weights_of(toolkit.train(shards, tmp_path / "run", SMALL, resume=True)) == weights_of(run)


def test_evaluating_writes_the_files_of_the_command(run: toolkit.Run, shards: toolkit.ShardSet):
    found = toolkit.evaluate(run.model, shards, batch_size=8)
    assert found.split == "test" and list(found.per_genre["genre"]) == list(shards.genres)
    assert found.figures["micro_f1"] == found.thresholds[-1].metrics["micro_f1"]
    assert (run.model / "metrics-test.json").is_file() and (run.model / "predictions-test.npz").is_file()
    assert repr(found).startswith(f"Evaluation(test, {found.num_samples} samples: mAP ")


@pytest.mark.parametrize("options", [{"beta": 1e-05}, ["beta=0.00001"]])
def test_options_of_a_metric_are_a_dict(run: toolkit.Run, shards: toolkit.ShardSet, options: Any, tmp_path: Path):
    metric = {"metric": f"{__name__}:Share", "metric_options": options}
    assert toolkit.evaluate(run.model, shards, out=tmp_path / "m.json", **metric).own == {"Share": 1e-05}


@toolkit.register
class Share:
    """A metric whose value is its option."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def __call__(self, truth: object, named: object, probabilities: object) -> float:
        return self.beta


def test_tuning_changes_the_thresholds_of_the_folder(run: toolkit.Run, shards: toolkit.ShardSet):
    before = dict(toolkit.load_model(run.model, device="cpu").thresholds)
    found = toolkit.tune(run.model, shards, aim="recall>=0.9", thresholds="global")
    after = toolkit.load_model(run.model, device="cpu").thresholds
    assert before != after and found.figures["micro_recall"] >= 0.9


def test_predicting_with_a_folder_or_a_loaded_model(run: toolkit.Run, shards: toolkit.ShardSet):
    images = [shards[0][0], shards[1][0]]
    loaded = toolkit.load_model(run.model, device="cpu")
    found = toolkit.predict(run.model, images, device="cpu", threshold=0.2)
    pd.testing.assert_frame_equal(found, toolkit.predict(loaded, images, threshold=0.2))
    assert len(found) == 2 and set(shards.genres) <= set(found.columns)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optim": {"lr": 1e-05}}, ["--optim.lr=1e-05"]),
        ({"optim.lr": np.float64(0.5), "train.ema": 0.9}, ["--optim.lr=0.5", "--train.ema=0.9"]),
        ({"loss": {"name": "asl", "options": {"gamma_neg": 3.0}}}, ["--loss.name=asl", "--loss.options.gamma_neg=3"]),
        (
            {"model": {"hidden": (8, 4), "weights": Path("a b.pth")}},
            ["--model.hidden=[8, 4]", "--model.weights=a b.pth"],
        ),
        ({"train": {"trackers": {}, "compile": False}}, ["--train.trackers={}", "--train.compile=false"]),
        ({"optim": OptimConfig(lr=0.1, name="sgd")}, ["--optim.lr=0.1", "--optim.name=sgd"]),
    ],
)
def test_keys_mean_the_same_as_on_the_command_line(given: dict[str, Any], words: list[str], tmp_path: Path):
    from toolkit_helpers import parse_train

    expected = parse_train([*words, "--shards=x", "--out=y"]).config
    assert config_of(given, {}) == config_of(None, given) == config_of(expected, {}) == expected != Config()


def test_keywords_replace_keys_of_a_file():
    file = ROOT / "configs" / "poster_resnet50_best.yaml"
    read = config_of(file, {})
    assert read.optim.name == "adamw"
    found = config_of(str(file), {"optim": {"lr": 0.5}})
    assert found.optim.lr == 0.5 and found.model == read.model


@pytest.mark.parametrize(
    ("given", "code", "facts"),
    [
        ({"optm": {"lr": 1}}, "option-unknown", ["'optm'", "'optim'"]),
        ({"optim": {"lrr": 1}}, "option-unknown", ["optim.lrr", "optim.lr"]),
        ({"optim": 3}, "option-value", ["optim", "dict"]),
        ({"optim": {"lr": "fast"}}, "option-value", ["optim.lr", "fast"]),
        ({"train": {"epochs": object()}}, "option-value", ["object"]),
        ({"train": {"epochs": 0}}, "option-value", ["train.epochs", "at least 1"]),
        ({"config": 3}, "option-value", ["config", "int"]),
        ({"config": "none.yaml"}, "config-file", ["none.yaml"]),
        ({"find_lr": "no"}, "option-value", ["find_lr"]),
        ({"find_lr": True, "resume": True}, "option-conflict", ["remove resume=True"]),
        ({"learning_rate": 1}, "option-unknown", ["'learning_rate'; did you mean optim={'lr': ...}?"]),
        ({"optim.learning_rate": 1}, "option-unknown", ["'optim.learning_rate'; did you mean 'optim.lr'?"]),
        ({"epoch": 1}, "option-unknown", ["did you mean train={'epochs': ...}?"]),
        ({"num_classes": 3}, "option-unknown", ["the genres are those of the shard set"]),
        ({"loss": "asl"}, "option-value", ["did you mean loss={'name': 'asl'}?"]),
        ({"config": {"optimizer": {"lr": 1}}}, "option-unknown", ["'optimizer'; did you mean 'optim'?"]),
    ],
)
def test_a_wrong_argument_of_train(given: dict[str, Any], code: Any, facts: list[str], tmp_path: Path):
    with fails(code, *facts):
        toolkit.train("SHARDS", tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_wrong_argument_of_the_others(run: toolkit.Run, shards: toolkit.ShardSet, tmp_path: Path):
    with fails("option-unknown", "'imges'", "'images'"):
        toolkit.build_shards(imges="a", out="b")
    with fails("option-missing", "out"):
        toolkit.build_shards(images=tmp_path / "images")
    with fails("option-unknown", "posters tune --set"):
        toolkit.tune(run.model, shards, set={"Drama": 0.5})
    with fails("path-exists", "is a shard set", "choose another out"):
        toolkit.train(shards, shards.path, SMALL)
    with fails("run-exists", "pass resume=True to continue it, or choose another out"):
        toolkit.train(shards, run.path, SMALL)
    number = toolkit.load_model(run.model, device="cpu").folder.config["poster_toolkit"]["shard_set"]
    with fails(
        "set-missing",
        f"{run.path} is a run folder",
        f"name a shard set with shards, such as the set {number} of this training",
    ):
        toolkit.train(run.path, tmp_path / "run", SMALL)
    with fails("option-value", "metric_options takes NAME=VALUE"):
        toolkit.evaluate(run.model, shards, metric_options=["beta"])
    with fails("option-unknown", "'spilt'", "'split'"):
        toolkit.evaluate(run.model, shards, spilt="val")
    with fails("set-split", "'dev'"):
        toolkit.evaluate(run.model, shards, split="dev")
    with fails("model-missing", "lacks config.json"):
        toolkit.tune(tmp_path, shards)


@pytest.mark.parametrize("wrong", [None, ["SHARDS"], 3, b"SHARDS"])
def test_a_path_is_not_guessed_from_another_object(run: toolkit.Run, shards: toolkit.ShardSet, wrong: Any):
    name = type(wrong).__name__
    with fails("option-value", f"out must be a path, not {name}"):
        toolkit.train(shards, wrong, SMALL)
    with fails("option-value", f"shards must be a path, not {name}"):
        toolkit.evaluate(run.model, wrong)
    with fails("option-value", f"model must be a path, not {name}"):
        toolkit.tune(wrong, shards)
    with fails("option-value", f"shards must be a path or a URL, not {name}"):
        toolkit.open_shards(wrong)
    with fails("option-value", "out must be a path, not an empty text"):
        toolkit.train(shards, "", SMALL)
    with fails("option-value", "model must be a path, not Run"):
        toolkit.evaluate(run, shards)  # type: ignore[arg-type]
    with fails("option-value", "metadata must be a path, not DataFrame"):
        toolkit.build_shards(images="posters", metadata=pd.DataFrame(), out="SHARDS")
    with fails("option-value", "split must be the name of one split, not list"):
        toolkit.open_shards(shards.path, split=["val"])  # type: ignore[arg-type]


def test_one_split_is_not_taken_for_the_whole_set(run: toolkit.Run, shards: toolkit.ShardSet, tmp_path: Path):
    val = toolkit.open_shards(shards.path, split="val")
    for call in (
        lambda: toolkit.evaluate(run.model, val),
        lambda: toolkit.compare([run.model, tmp_path], val),
        lambda: toolkit.tune(run.model, val),
        lambda: toolkit.train(val, tmp_path / "run", SMALL),
    ):
        with fails("option-conflict", "shards was opened with split='val'", "pass its path or URL instead"):
            call()


def test_the_import_is_quick_and_names_are_seen():
    """torch takes seconds, and a program that only reads `toolkit.__version__` need not wait for it."""
    code = (
        "import sys, toolkit; assert not {'torch', 'numpy', 'pandas', 'rich'} & set(sys.modules), sys.modules.keys()\n"
        "assert set(toolkit.__all__) <= set(dir(toolkit)) and toolkit.__version__\n"
        "for name in toolkit.__all__: assert getattr(toolkit, name).__doc__, name\n"
        "try: toolkit.nothing\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "no attribute 'nothing'" in done.stdout, done.stderr


@pytest.mark.parametrize("given", ["wandb, mlflow", ["wandb", "mlflow"], {"wandb": {}, "mlflow": {}}])
def test_trackers_are_named_in_a_text_a_list_or_with_options(given: object):
    assert config_of(None, {"train.trackers": given}).train.trackers == {"wandb": {}, "mlflow": {}}


def test_a_head_of_others_is_trusted_by_predict(run: toolkit.Run, posters: Path):
    image = posters / "images" / "p00000.jpg"
    found = toolkit.predict(run.model, image, trust_code=["some_module"])
    assert found["genres"].tolist() == toolkit.predict(run.model, image)["genres"].tolist()
