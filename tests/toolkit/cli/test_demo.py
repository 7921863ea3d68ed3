"""The demo, small: it ends, and everything it names is there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from toolkit_helpers import posters_command

import toolkit.cli.demo
from shards.errors import UserError
from toolkit.cli.demo import demo_config, run_demo
from toolkit.cli.demo_options import DemoOptions
from toolkit.model_folder.folder import load_model_folder

POSTERS = 60


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo leaves everything."""
    return tmp_path_factory.mktemp("demo") / "demo"


@pytest.fixture(scope="module")
def run(out: Path) -> subprocess.CompletedProcess[str]:
    """The command, run once."""
    return posters_command("demo", "--out", out, "--posters", POSTERS)


def named(stdout: str, out: Path) -> dict[str, Path]:
    """The things to look at: word in front → path."""
    lines = [line.split(maxsplit=1) for line in stdout.splitlines() if str(out) in line]
    return {word: Path(rest.split(" (")[0]) for word, rest in lines if word not in ("try", "page")}


def test_demo_ends_in_things_to_look_at(run: subprocess.CompletedProcess[str], out: Path):
    assert run.returncode == 0, run.stderr
    paths = named(run.stdout, out)
    assert {"posters", "shards", "model", "epochs", "metrics", "report", "predictions", "pictures"} <= set(paths)
    for path in paths.values():
        assert path.is_absolute() and path.exists(), path
    with Image.open(out / "predictions.png") as picture:
        assert picture.width > 500
    assert json.loads((out / "run/model/metrics-test.json").read_text())["split"] == "test"
    assert "Metrics on test" in (out / "run/model/README.md").read_text()
    assert load_model_folder(out / "run" / "model").labels.genres


def test_the_report_is_of_the_run_and_says_what_makes_it_again(run: subprocess.CompletedProcess[str], out: Path):
    page = (out / "report" / "index.html").read_text()
    numbers = json.loads((out / "report" / "metrics.json").read_text())
    measured = json.loads((out / "run/model/metrics-test.json").read_text())
    values = {row["metric"]: row["value"] for row in numbers["headline"]}
    assert values["mAP"] == pytest.approx(measured["ranking"]["mAP"], abs=1e-6)
    assert "data:image/jpeg;base64" in page  # posters of the test split
    assert f"posters evaluate --model {out}/run/model --shards {out}/shards --report {out}/report" in page
    assert (out / "report" / "label-errors.csv").exists()


def test_again_without_cleanlab_it_goes_on_and_a_line_says_what_is_missing(
    run: subprocess.CompletedProcess[str],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    trained = (out / "run/model/model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(toolkit.cli.demo, "have_cleanlab", lambda: False)
    assert run_demo(DemoOptions(out, POSTERS)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("report ")]
    assert line.endswith("index.html (without likely label errors: pip install 'poster-toolkit[report]')")
    assert not (out / "report" / "label-errors.csv").exists()
    assert (out / "run/model/model.safetensors").stat().st_mtime_ns == trained


def test_a_strange_report_folder_is_refused_before_the_work(tmp_path: Path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        run_demo(DemoOptions(tmp_path, POSTERS))
    assert not (tmp_path / "posters").exists()


def test_the_seed_reaches_the_training():
    assert demo_config(7).train.seed == 7
