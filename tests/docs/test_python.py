"""The programs of the guide "From Python" and the notebook of the first steps run as they stand."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from toolkit_helpers import ROOT, weights_option

import toolkit

GUIDE = (ROOT / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(import .*?)```", GUIDE, re.S)
NOTEBOOK = ROOT / "docs" / "get-started" / "first-steps.ipynb"


@pytest.fixture(scope="module")
def folder(drawn_posters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the programs name: posters/, posters.csv, poster.jpg and configs/."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(drawn_posters / "images", folder / "posters", ignore=shutil.ignore_patterns("bad_*"))
    shutil.copy(folder / "posters" / "p00000.jpg", folder / "poster.jpg")
    (folder / "configs").symlink_to(ROOT / "configs")
    rows = csv.DictReader((drawn_posters / "metadata.csv").open(encoding="utf-8"))
    good = [row for row in rows if not row["poster_id"].startswith("bad_")]
    with (folder / "posters.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerows([("id", "genre"), *((row["poster_id"], row["genre"]) for row in good)])
    return folder


def small_train(shards: Any, out: str, config: str, **options: Any) -> toolkit.Run:
    """A training of seconds, with a backbone that needs no download."""
    from toolkit.cli.functions import train

    name, _, file = weights_option().removeprefix("--").partition("=")
    small: dict[str, Any] = {
        "model.name": "test_resnet",
        name: file,
        "data.image_size": 64,
        "data.workers": 1,
        "train.epochs": 2,
    }
    return train(shards, out, config, **{**options, **small})


@pytest.fixture(scope="module")
def ran(folder: Path) -> list[dict[str, Any]]:
    """The names that each program of the guide leaves, run in order."""
    found: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(toolkit, "train", small_train, raising=False)
        for block in BLOCKS:
            names: dict[str, Any] = {}
            exec(compile(block.replace("n_trials=30", "n_trials=3"), "docs/guides/python.md", "exec"), names)
            found.append(names)
    return found


def test_every_program_of_the_guide_runs(ran: list[dict[str, Any]], folder: Path):
    first, _, shards, predicted, _ = ran
    names = [path.name for path in (folder / "posters").iterdir()]
    assert len(first["found"]) == len(names)
    assert len(predicted["many"]) == sum(name.endswith(".jpg") for name in names)
    assert len(shards["shards"]) == toolkit.open_shards(folder / "SHARDS").splits["train"]
    assert predicted["model"].thresholds["Drama"] == 0.9 and len(predicted["one"]) == 1


def test_optuna_chooses_from_three_trials(ran: list[dict[str, Any]], folder: Path):
    """Each with its own options and figures, and one cache of features for all."""
    study = ran[-1]["study"]
    assert len(study.trials) == 3 and study.best_value == max(trial.value for trial in study.trials)
    for trial in study.trials:
        run = toolkit.Run(folder / "STUDY" / f"trial-{trial.number}")
        assert run.cross_fitted["mAP"] == trial.value
        assert run.config["optim"]["lr"] == pytest.approx(trial.params["lr"])
        assert run.config["model"]["dropout"] == pytest.approx(trial.params["dropout"])
        assert not (run.path / "features").exists()
    assert (folder / "STUDY" / "features").is_dir()


@pytest.mark.long
def test_the_notebook_runs_without_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stored without results, which would grow old
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert "Warning" not in said and "Traceback" not in said, said
    assert sum("image/png" in data for data in shown) == 2 and sum("text/html" in data for data in shown) == 3
