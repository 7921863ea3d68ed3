"""The demo, small: it ends, and everything it names is there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from browser_tools import Window, axe, printed_words
from html_tools import HtmlReader
from PIL import Image
from toolkit_helpers import posters_command

import toolkit.cli.demo
from shards.errors import UserError
from toolkit.cli.demo import demo_config, run_demo
from toolkit.cli.demo_options import DemoOptions
from toolkit.cli.demo_page import RESULTS
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


def test_demo_ends_in_things_to_look_at(run: subprocess.CompletedProcess[str], out: Path):
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == f"all results    {(out / 'index.html').as_uri()}"
    assert run.stdout.count("index.html") == 2  # of the report, and of the demo
    tiles = json.loads((out / "report" / "metrics.json").read_text())["overview"]["tiles"]
    assert len(tiles) >= 3 and all(f"{tile['words']}.\n" in run.stdout for tile in tiles)
    assert len(run.stdout.splitlines()) <= 10
    with Image.open(out / "predictions.png") as picture:
        assert picture.width > 500
    assert json.loads((out / "run/model/metrics-test.json").read_text())["split"] == "test"
    assert "Metrics on test" in (out / "run/model/README.md").read_text()
    assert load_model_folder(out / "run" / "model").labels.genres


def test_the_page_has_six_pictures_and_links_to_all_results(run: subprocess.CompletedProcess[str], out: Path):
    page = (out / "index.html").read_text()
    reader = HtmlReader(page)
    links = [link["href"] or "" for link in reader.all("a")]
    assert set(RESULTS) <= set(links) and all((out / link).exists() for link in links)
    report = HtmlReader((out / "report" / "index.html").read_text())
    assert "../index.html" in [link["href"] for link in report.all("a")]  # and back
    words = "".join(reader.text)
    for step in ("1. Posters", "2. Shards", "3. Training", "4. Results", "5. Predictions", "6. Where the model looks"):
        assert step in words
    pictures = [picture["src"] or "" for picture in reader.all("img")]
    assert [tag.get("class") for tag in reader.all("div")].count("drawing") == 1  # the course of training
    assert len(pictures) == 6 + 3 + 3 and all(source.startswith("data:image/") for source in pictures)
    assert len(page) < 3_000_000


@pytest.fixture
def page(run: subprocess.CompletedProcess[str], out: Path) -> Path:
    return out / "index.html"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_fits_the_screen_and_axe_finds_no_barriers(window: Window, page: Path, width: int, dark: bool):
    window.open(page, width, dark=dark)
    assert width < 500 or 100 < window.lowest("h1, .tile") <= 800  # the first screen of a desk has the tiles
    paper = window.pixels()[2, 2].max()
    assert paper < 60 if dark else paper > 220
    assert window.width() == width == window.unfold().width()
    assert axe(window.driver) == []


def test_the_page_asks_for_nothing_and_prints_whole(window: Window, page: Path):
    window.asked()
    words = printed_words(window.open(page).pdf())
    assert window.asked() == []
    for text in (*window.headings(), "Precision (micro): ", "posters predict --model RUN NEW_POSTERS"):
        assert text in words  # tiles are unfolded


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


def test_a_file_as_the_folder_is_one_line(tmp_path: Path):
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(UserError, match="demo is a file; name a folder"):
        run_demo(DemoOptions(tmp_path / "demo", POSTERS))
    assert (tmp_path / "demo").read_text() == "mine"


def test_a_strange_report_folder_is_refused_before_the_work(tmp_path: Path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        run_demo(DemoOptions(tmp_path, POSTERS))
    assert not (tmp_path / "posters").exists()


def test_the_seed_reaches_the_training():
    assert demo_config(7).train.seed == 7
