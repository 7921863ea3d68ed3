"""A run folder in Python that lacks its files. tests/toolkit/cli/test_functions.py has a whole one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from failing import fails

from toolkit.cli.run_folder import Run
from toolkit.prediction.api import load_model


def test_what_is_missing_is_named(tmp_path: Path, model_folder: Path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    run = Run(tmp_path / "begun")
    assert repr(run) == f"Run({str(tmp_path / 'begun')!r})"
    with fails("model-missing", tmp_path / "begun"):
        _ = run.epoch
    for read in (lambda: run.epochs, lambda: run.cross_fitted, lambda: run.figures, lambda: run.log):
        with fails("model-missing", f"{tmp_path / 'begun'} has no ", " yet: finish the training with resume=True"):
            read()
    with fails("model-missing", "begun is a run folder, not a model folder; its training has written no model yet"):
        load_model(tmp_path / "begun")
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    with fails(
        "model-damaged", "metrics-val.json", f"`posters evaluate --model {tmp_path / 'run'} --shards SHARDS --sp"
    ):
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
    with fails("option-value", "path must be a path, not NoneType"):
        Run(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"thresholds": []}'])
def test_damaged_metrics_are_told(text: str, tmp_path: Path, model_folder: Path):
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "metrics-val.json").write_text(text)
    with fails("model-damaged", "metrics-val.json"):
        _ = Run(tmp_path / "run").figures
