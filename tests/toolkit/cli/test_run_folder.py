"""A run folder in Python that lacks its files. tests/toolkit/cli/test_functions.py has a whole one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from failing import fails

from toolkit.cli.run_folder import Run


def test_what_is_missing_is_named(tmp_path: Path, model_folder: Path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    run = Run(tmp_path / "begun")
    assert repr(run) == f"Run({str(tmp_path / 'begun')!r})"
    with fails("model-missing", tmp_path / "begun"):
        _ = run.epoch
    with fails("path-unreadable", "epochs.csv"):
        _ = run.epochs
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    with fails("model-damaged", "metrics-val.json", "posters evaluate"):
        _ = Run(tmp_path / "run").figures


def test_what_is_no_run_folder_is_refused_at_once(tmp_path: Path, model_folder: Path, drawn_set: Path):
    (tmp_path / "runs").mkdir()
    with fails("path-missing", f"run folder not found: {tmp_path / 'run'}; did you mean 'runs'?"):
        Run(tmp_path / "run")
    with fails("model-missing", f"{drawn_set} is a shard set, not a run folder; name a run folder instead"):
        Run(drawn_set)
    with fails("model-missing", f"{model_folder} is a model folder, not a run folder; name the folder of its training"):
        Run(model_folder)
    with fails("model-missing", f"{tmp_path / 'runs'} is not a run folder"):
        Run(tmp_path / "runs")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"thresholds": []}'])
def test_damaged_metrics_are_told(text: str, tmp_path: Path, model_folder: Path):
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "metrics-val.json").write_text(text)
    with fails("model-damaged", "metrics-val.json"):
        _ = Run(tmp_path / "run").figures
