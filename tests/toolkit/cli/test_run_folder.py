"""A run folder in Python that lacks its files. tests/toolkit/cli/test_functions.py has a whole one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from failing import fails

from toolkit.cli.run_folder import Run


def test_what_is_missing_is_named(tmp_path: Path, model_folder: Path):
    run = Run(tmp_path / "none")
    assert repr(run) == f"Run({str(tmp_path / 'none')!r})"
    with fails("model-missing", tmp_path / "none"):
        _ = run.epoch
    with fails("path-unreadable", "epochs.csv"):
        _ = run.epochs
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    with fails("model-damaged", "metrics-val.json", "posters evaluate"):
        _ = Run(tmp_path / "run").figures


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"thresholds": []}'])
def test_damaged_metrics_are_told(text: str, tmp_path: Path, model_folder: Path):
    shutil.copytree(model_folder, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "metrics-val.json").write_text(text)
    with fails("model-damaged", "metrics-val.json"):
        _ = Run(tmp_path / "run").figures
