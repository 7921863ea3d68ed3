"""``posters tune``: new decisions from validation alone, whole files, no weight touched, one or two processes alike."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from toolkit_helpers import launch_2, make_model_folder, reverse_labels

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from toolkit.cli.main import main
from toolkit.config.schema import DecideConfig
from toolkit.decisions.decisions import Decisions, choose_decisions
from toolkit.model_folder.folder import load_labels, load_model_folder, write_labels
from toolkit.models.heads import HeadSpec


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder, tmp_path / "model")


def tune(model: Path, shards: Path, *options: str) -> int:
    return main(["tune", "--model", str(model), "--shards", str(shards), "--workers", "1", *options])


def test_it_rewrites_what_depends_on_decisions_and_nothing_else(
    model: Path, shard_set: Path, capsys: pytest.CaptureFixture[str]
):
    before = {name: (model / name).read_bytes() for name in ("model.safetensors", "config.json")}
    assert main(["evaluate", "--model", str(model), "--shards", str(shard_set), "--workers", "1"]) == 0
    assert "## Metrics on test" in (model / "README.md").read_text()
    assert tune(model, shard_set, "--aim", "recall>=0.8", "--calibration", "platt") == 0  # per genre: a level
    assert "recall of at least 0.8" in capsys.readouterr().out
    assert {name: (model / name).read_bytes() for name in before} == before

    folder = load_model_folder(model)
    assert folder.decisions.aim == "recall>=0.8" and folder.decisions.calibration == "platt"
    kept = np.load(model / "predictions-val.npz", allow_pickle=False)
    again = choose_decisions(
        kept["targets"] > 0, kept["logits"].astype(float), DecideConfig("auto", "recall>=0.8", "platt")
    )
    assert again.to_dict() == folder.decisions.to_dict()  # a function of what the npz holds
    named = folder.decisions.named(kept["logits"])
    hits, support = (named & (kept["targets"] == 1)).sum(axis=0), kept["targets"].sum(axis=0)
    assert (hits >= 0.8 * support).all()

    metrics = json.loads((model / "metrics-val.json").read_text())
    assert metrics["decisions"] == folder.decisions.fingerprint
    assert metrics["thresholds"][-1]["threshold"] == folder.decisions.thresholds.tolist()
    card = (model / "README.md").read_text()
    # test's metrics are of the old decisions
    assert "## Metrics on val" in card and "## Metrics on test" not in card and "Platt" in card
    assert main(["evaluate", "--model", str(model), "--shards", str(shard_set), "--workers", "1"]) == 0
    assert "## Metrics on test" in (model / "README.md").read_text()
    assert not list(model.glob("*.partial"))


def test_options_reach_the_choice(model: Path, shard_set: Path):
    assert tune(model, shard_set, "--thresholds", "global", "--calibration", "none") == 0
    decisions = load_labels(model)[1]
    assert not decisions.per_label and decisions.calibration == "none" and decisions.aim == "f1"
    assert (decisions.thresholds == decisions.global_threshold).all()
    assert tune(model, shard_set, "--calibration", "temperature") == 0
    other = load_labels(model)[1]
    assert other.calibration == "temperature" and (other.scale != 1).all()
    assert other.chosen_on["cross_fit"].keys() >= {"single", "per genre, slack 0.01"}
    assert other.per_label == ("slack" in other.chosen_on)
    assert tune(model, shard_set, "--thresholds", "genre") == 0
    assert load_labels(model)[1].chosen_on["slack"] == DecideConfig().max_micro_f_loss
    assert tune(model, shard_set, "--thresholds", "genre", "--max-micro-f-loss", "0") == 0
    assert load_labels(model)[1].chosen_on["slack"] == 0


def test_test_labels_change_no_bit(model: Path, shard_set: Path, tmp_path: Path):
    other = shutil.copytree(shard_set, tmp_path / "set")
    reverse_labels(other, "test")
    assert tune(model, shard_set) == 0
    first = (model / "labels.json").read_bytes()
    assert main(["evaluate", "--model", str(model), "--shards", str(shard_set), "--workers", "1"]) == 0
    figures = json.loads((model / "metrics-test.json").read_text())
    assert tune(model, other) == 0
    assert (model / "labels.json").read_bytes() == first
    assert main(["evaluate", "--model", str(model), "--shards", str(other), "--workers", "1"]) == 0
    others = json.loads((model / "metrics-test.json").read_text())
    assert (model / "labels.json").read_bytes() == first  # evaluating chooses nothing
    assert others["per_genre"] != figures["per_genre"] and others["decisions"] == figures["decisions"]


def test_another_set_is_told_and_other_labels_are_refused(
    model: Path, shard_set: Path, labels: LabelSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        assert tune(model, shard_set) == 0  # the untrained folder names no set
    assert "is not the shard set that the model was trained on" in caplog.text
    caplog.clear()
    config = json.loads((model / "config.json").read_text())
    config["poster_toolkit"]["shard_set"] = Manifest.read(shard_set).fingerprint
    (model / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        assert tune(model, shard_set) == 0
    assert "is not the shard set" not in caplog.text

    swapped = LabelSet((labels.genres[1], labels.genres[0], *labels.genres[2:]))
    foreign = make_model_folder(tmp_path / "m", swapped, HeadSpec("linear", (), 0.0))
    before = (foreign / "labels.json").read_bytes()
    with pytest.raises(UserError, match="another order, with the first difference at column 0"):
        tune(foreign, shard_set)
    assert (foreign / "labels.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--aim", "accuracy"], ["--aim", "f0.5", "accuracy"]),
        (["--calibration", "isotonic"], ["isotonic"]),
        (["--batch-size", "-1"], ["--batch-size"]),
        (["--max-micro-f-loss", "1"], ["--max-micro-f-loss", "1.0"]),
    ],
)
def test_bad_options_are_one_line(model: Path, shard_set: Path, options: list[str], facts: list[str]):
    with fails("option-value", *facts):
        tune(model, shard_set, *options)


def test_two_processes_choose_what_one_does(model: Path, shard_set: Path, tmp_path: Path):
    double = shutil.copytree(model, tmp_path / "double")
    assert tune(model, shard_set, "--calibration", "platt") == 0
    run = launch_2("launch/tune.py", "--model", double, "--shards", shard_set, "--calibration", "platt", "--workers", 1)
    assert run.returncode == 0, run.stderr
    alone, together = load_labels(model)[1], load_labels(double)[1]
    for name in ("thresholds", "scale", "bias"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), rtol=1e-4, atol=1e-5)
    one, two = (json.loads((folder / "metrics-val.json").read_text()) for folder in (model, double))
    assert [row["metrics"] for row in two["thresholds"]] == [row["metrics"] for row in one["thresholds"]]
    assert two["calibration"]["after"]["ece"] == pytest.approx(one["calibration"]["after"]["ece"], abs=1e-5)


def set_by_hand(model: Path, *given: str) -> int:
    return main(["tune", "--model", str(model), *(word for text in given for word in ("--set", text))])


def test_one_threshold_is_set_by_hand(
    model: Path, shard_set: Path, labels: LabelSet, capsys: pytest.CaptureFixture[str]
):
    assert tune(model, shard_set, "--calibration", "platt") == 0
    chosen, before = load_labels(model)[1], {path.name: path.read_bytes() for path in model.iterdir()}
    assert set_by_hand(model, "Drama=0.75") == 0 and set_by_hand(model, "Comedy=1", "Drama=0.5") == 0
    _, now = load_labels(model)
    own = dict(zip(labels.genres, chosen.thresholds.tolist(), strict=True))
    assert now.thresholds.tolist() == list((own | {"Drama": 0.5, "Comedy": 1.0}).values())
    for name in ("scale", "bias"):
        assert (getattr(now, name) == getattr(chosen, name)).all()
    assert now.calibration == "platt" and now.global_threshold == chosen.global_threshold
    assert now.source == f"{chosen.source}; set by hand: Comedy 1, Drama 0.5"
    assert now.chosen_on == chosen.chosen_on | {"by_hand": {"Comedy": own["Comedy"], "Drama": own["Drama"]}}
    out = capsys.readouterr().out
    assert f"0.500  set by hand (chosen: {own['Drama']:.3f})" in out and "set by hand: Comedy 1, Drama 0.5" in out
    card = (model / "README.md").read_text()
    assert "set by hand: Comedy 1, Drama 0.5" in card and "## Metrics on val" not in card  # of the chosen thresholds
    after = {path.name: path.read_bytes() for path in model.iterdir()}
    assert {name for name in before if after[name] != before[name]} == {"labels.json", "README.md"}
    assert after.keys() == before.keys()

    assert tune(model, shard_set, "--calibration", "platt") == 0  # a new choice replaces all of them
    assert (model / "labels.json").read_bytes() == before["labels.json"]


def test_names_of_genres_may_have_signs_and_steer_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    genres = LabelSet(("a=b", "Film Noir", "[bold]\x1b[2J"))
    folder = make_model_folder(tmp_path / "m", genres, HeadSpec("linear", (), 0.0))
    assert set_by_hand(folder, "a=b=0.1", "Film Noir=0.2", "[bold]\x1b[2J=0.3") == 0
    assert load_labels(folder)[1].thresholds.tolist() == [0.1, 0.2, 0.3]
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"[bold]\x1b[2J 0.3" in out


def test_a_long_name_leaves_a_file_that_can_be_read(tmp_path: Path):
    genres = LabelSet(tuple(f"{number:02d}{'x' * 4000}" for number in range(30)))
    folder = make_model_folder(tmp_path / "m", genres, HeadSpec("linear", (), 0.0))
    assert set_by_hand(folder, *(f"{genre}=0.25" for genre in genres.genres)) == 0
    assert load_labels(folder)[1].thresholds.tolist() == [0.25] * 30


def test_what_set_refuses(model: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch):
    before = (model / "labels.json").read_bytes()
    with fails("option-value", "--set", "'drama'", "did you mean 'Drama'"):
        set_by_hand(model, "Comedy=0.5", "drama=0.5")
    for text in ("0.5", "Drama", "Drama=", "Drama=2", "Drama=nan"):
        with fails("option-value", "--set"):
            set_by_hand(model, text)
    for more in (["--shards", str(shard_set)], ["--aim", "f0.5"]):
        with fails("option-conflict", "--set", "--shards"):
            main(["tune", "--model", str(model), "--set", "Drama=0.5", *more])
    with fails("option-missing", "--shards", "--set"):
        main(["tune", "--model", str(model)])
    with fails("model-missing", model.parent / "none"):
        set_by_hand(model.parent / "none", "Drama=0.5")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "15000"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    with fails("option-conflict", "--set", "launcher"):
        set_by_hand(model, "Drama=0.5")
    assert (model / "labels.json").read_bytes() == before


def test_labels_are_written_whole_or_not_at_all(model: Path, labels: LabelSet):
    before = (model / "labels.json").read_bytes()
    with pytest.raises(ValueError, match="1 thresholds for"):
        write_labels(model, labels, Decisions.plain([0.5]))
    assert (model / "labels.json").read_bytes() == before
