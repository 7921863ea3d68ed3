"""``posters evaluate --report``: the command from end to end, in one process and in two, and what it refuses."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from failing import fails
from sklearn.metrics import average_precision_score, f1_score
from toolkit_helpers import ROOT, launch_2, make_model_folder, posters_command

from shards.dataset.labels import LabelSet
from shards.dataset.manifest import Manifest
from shards.errors import UserError
from shards.storage.files import write_json
from toolkit.cli.commands import read
from toolkit.cli.main import main
from toolkit.evaluation.options import EvaluateOptions
from toolkit.metrics.helpers import sigmoid
from toolkit.model_folder.folder import OWN_KEY
from toolkit.models.heads import HeadSpec
from toolkit.report.label_errors import have_cleanlab
from toolkit.report.run import ReportRun, command_line, run_names


@pytest.fixture(scope="module")
def other_run(labels: LabelSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with another untrained model, one for larger pictures."""
    run = tmp_path_factory.mktemp("runs") / "second"
    make_model_folder(run / "model", labels, HeadSpec("linear", (), 0.0), size=48)
    return run


@pytest.fixture(scope="module")
def made(model_folder: Path, shard_set: Path, other_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """(printed, folder of the report, predictions) of one process."""
    out = tmp_path_factory.mktemp("report")
    run = posters_command(
        "evaluate", "--model", model_folder, "--shards", shard_set, "--report", out / "page", "--compare", other_run,
        "--out", out / "metrics.json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout, out / "page", np.load(out / "metrics.npz")


def test_the_command_writes_a_page_and_says_where(made, shard_set: Path):
    printed, folder, predictions = made
    assert f"report      {folder / 'index.html'}" in printed
    page = (folder / "index.html").read_text()
    manifest = Manifest.read(shard_set)
    for word in (*manifest.genres, manifest.fingerprint, manifest.labels.fingerprint, "second", "--compare"):
        assert word in page
    assert page.count("data:image/jpeg") >= 12 and "unreadable image" not in page
    assert len(predictions["ids"]) == json.loads((folder / "metrics.json").read_text())["num_samples"]


def test_numbers_are_scikit_learns_on_the_saved_logits(made):
    _, folder, predictions = made
    numbers = json.loads((folder / "metrics.json").read_text())
    targets, probabilities = predictions["targets"].astype(bool), sigmoid(predictions["logits"])
    shown = {row["metric"]: row["value"] for row in numbers["headline"]}
    some = targets.any(axis=0)
    assert shown["mAP"] == pytest.approx(average_precision_score(targets[:, some], probabilities[:, some]))
    named = probabilities >= 0.5
    assert shown["micro_f1"] == pytest.approx(f1_score(targets, named, average="micro", zero_division=0))
    (row,) = [c for c in numbers["comparisons"] if c["kind"] == "run"]
    assert row["name"] == "second" and row["rows"][0]["mine"] == shown["mAP"] != row["rows"][0]["theirs"]
    assert (numbers["label_errors"] is not None) == have_cleanlab()


def test_the_set_says_which_posters_are_near_duplicates(made, shard_set: Path):
    _, folder, predictions = made
    (shown,) = [n for n in json.loads((folder / "metrics.json").read_text())["notes"] if "near-dup" in n] or [""]
    units = Manifest.read(shard_set).units_of("test")
    assert units is not None and len(units) == len(predictions["ids"])
    assert ("count each group as one poster" in shown) == (len(set(units.tolist())) < len(units))
    assert "does not record" not in shown


def test_two_processes_write_one_report_with_the_same_numbers(
    made, model_folder: Path, shard_set: Path, other_run: Path, tmp_path: Path
):
    run = launch_2(
        ROOT / "launch" / "evaluate.py", "--model", model_folder, "--shards", shard_set, "--report", tmp_path / "page",
        "--compare", other_run, "--out", tmp_path / "metrics.json", "--workers", 1,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("index.html") == 1
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (made[1], tmp_path / "page"))
    for before, after in zip(one["headline"], two["headline"], strict=True):
        assert after == pytest.approx(before, abs=1e-4), before["metric"]
    assert two["facts"]["command"].startswith("posters evaluate --model")


def test_another_set_of_training_is_told_of_both(made, model_folder: Path, other_run: Path, shard_set: Path):
    _, folder, _ = made
    notes = " ".join(json.loads((folder / "metrics.json").read_text())["notes"])
    for name in (model_folder.parent.name, "second"):
        assert f"{name} was trained on another shard set" in notes


def test_one_line_in_the_log_for_each_model_of_another_set(
    shard_set: Path, model_folder: Path, other_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    same = shutil.copytree(model_folder, tmp_path / "same")
    config = json.loads((same / "config.json").read_text())
    config[OWN_KEY]["shard_set"] = Manifest.read(shard_set).fingerprint
    write_json(same / "config.json", config)
    words = ["evaluate", "--shards", shard_set, "--workers", "1", "--out", tmp_path / "m.json"]
    words += ["--report", tmp_path / "page", "--no-label-errors"]

    def told(*more: object) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert main([str(word) for word in (*words, *more)]) == 0
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "is not the shard set that" in line]

    (line,) = told("--model", same, "--compare", other_run)
    assert str(other_run / "model") in line and "if its test split contains training samples" in line
    (line,) = told("--model", model_folder, "--compare", same)
    assert str(model_folder) in line
    assert told("--model", same) == []


def options(shard_set: Path, model: Path, *more: object) -> EvaluateOptions:
    found: EvaluateOptions
    _, found = read(["evaluate", "--model", str(model), "--shards", str(shard_set), *map(str, more)])
    return found


def test_no_report_is_asked_for(shard_set: Path, model_folder: Path):
    assert ReportRun.of(options(shard_set, model_folder)) is None
    assert ReportRun.of(options(shard_set, model_folder, "--no-label-errors")) is None


@pytest.mark.parametrize("more", [["--compare", "run2"], ["--label-errors"]])
def test_what_goes_into_a_report_needs_one(shard_set: Path, model_folder: Path, more: list[str]):
    with fails("option-missing", more[0], "--report DIR"):
        ReportRun.of(options(shard_set, model_folder, *more))


def test_a_missing_or_other_run_is_refused(shard_set: Path, model_folder: Path, labels: LabelSet, tmp_path: Path):
    wanted = ["--report", tmp_path / "page", "--compare"]
    with pytest.raises(UserError, match="no model folder at"):
        ReportRun.of(options(shard_set, model_folder, *wanted, tmp_path / "nowhere"))
    swapped = LabelSet((labels.genres[1], labels.genres[0], *labels.genres[2:]))
    other = make_model_folder(tmp_path / "m", swapped, HeadSpec("linear", (), 0.0))
    with pytest.raises(UserError, match=r"labels differ: the model has .* --compare has .* difference at column 0"):
        ReportRun.of(options(shard_set, model_folder, *wanted, other))


def test_a_foreign_folder_is_refused_before_the_work(
    shard_set: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def infer(*_: object) -> None:
        raise AssertionError("looked at the pictures first")

    monkeypatch.setattr("toolkit.evaluation.evaluate.infer_split", infer)
    (tmp_path / "notes.txt").write_text("mine")
    with fails("path-exists", "--report", tmp_path, "notes.txt"):
        main(["evaluate", "--model", str(model_folder), "--shards", str(shard_set), "--report", str(tmp_path)])


def test_label_errors_by_default_where_they_can_be_had(
    shard_set: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def wanted(*more: str) -> bool:
        found = ReportRun.of(options(shard_set, model_folder, "--report", tmp_path / "page", *more))
        assert found is not None
        return found.label_errors

    monkeypatch.setattr("shards.extras.find_spec", lambda module: module)
    assert wanted() and wanted("--label-errors") and wanted("--split", "val")
    assert not wanted("--no-label-errors") and not wanted("--split", "train")
    assert wanted("--split", "train", "--label-errors")
    monkeypatch.setattr("shards.extras.find_spec", lambda module: None)
    assert not wanted()
    with fails("extra-missing", "--label-errors needs cleanlab"):
        wanted("--label-errors")


def test_names_tell_two_runs_apart(tmp_path: Path):
    assert run_names(Path("a/model"), None) == ["a"]
    assert run_names(Path("a/model"), Path("b/model")) == ["a", "b"]
    assert run_names(Path("x/a/model"), Path("y/a/model")) == ["x/a/model", "y/a/model"]
    assert run_names(tmp_path / "exported", Path("b/model")) == ["exported", "b"]


@pytest.mark.parametrize("argv", [["posters", "evaluate", "--model", "a b"], ["evaluate.py", "--model", "a b"]])
def test_the_command_can_be_typed_again(argv: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", argv)
    assert command_line() == "posters evaluate --model 'a b'"
