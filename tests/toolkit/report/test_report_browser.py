"""The page in a real browser, where there is one: on a phone and a desk, in the dark, on paper, without a network."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from browser_tools import Window, axe, printed_words
from report_tools import GENRES, inputs

from toolkit.report.build import Report, build_report
from toolkit.report.output import render_page


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(inputs(), label_errors=False, rounds=20)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render_page(report), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nobody_scrolls_sideways(window: Window, page: Path, width: int):
    assert window.open(page, width).unfold().width() == width


@pytest.mark.parametrize("width", [390, 1280])
def test_there_is_something_to_see(window: Window, page: Path, width: int):
    pixels = window.open(page, width, 2400).unfold().pixels()
    assert pixels.shape == (2400, width, 3)
    paper = pixels[2, 2].astype(int)
    assert paper.min() > 220
    for band in np.array_split(pixels, 6):  # nowhere is it empty
        inked = (np.abs(band.astype(int) - paper).max(axis=2) > 60).mean()
        assert 0.005 < inked < 0.6
    assert len(np.unique(pixels @ np.array([65536, 256, 1]))) > 200  # colours


def test_in_the_dark_nothing_stays_white(window: Window, page: Path):
    pixels = window.open(page, 1280, 12_000, dark=True).unfold().pixels()
    light = pixels.min(axis=2) > 230
    assert pixels[2, 2].max() < 60 and 0.0005 < light.mean() < 0.05  # letters, and no plot's background


def test_it_prints(window: Window, page: Path, report: Report):
    pdf = window.open(page).pdf()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pdf.startswith(b"%PDF-") and 4 <= pages <= 30
    words = printed_words(pdf)
    assert report.numbers["verdict"]["sentence"] in words
    for heading in window.headings():  # also of the folded sections
        assert heading in words


def test_it_asks_for_nothing(window: Window, page: Path, tmp_path: Path):
    curious = tmp_path / "curious.html"
    curious.write_text('<img src="http://poster.invalid/1.png">')
    window.open(curious)
    assert window.asked()[-1] == "http://poster.invalid/1.png"  # it would be seen
    window.open(page).unfold()
    assert window.asked() == []


SORTING = """
const table = document.querySelector("#genres table");
const [genre, support] = table.tHead.querySelectorAll("button");
const column = (place) => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);
const seen = [support, support, genre].map((button) => {
  button.click();
  return [button.closest("th").getAttribute("aria-sort"), ...column(button === genre ? 0 : 1)];
});
document.querySelector('nav a[href="#facts"]').click();
return seen;
"""


def test_a_table_is_sorted_and_a_link_opens_its_section(window: Window, page: Path, report: Report):
    down, up, names = window.open(page).run(SORTING)
    supports = [str(row["support"]) for row in report.numbers["per_genre"]]
    assert down == ["descending", *sorted(supports, key=int, reverse=True)]
    assert up == ["ascending", *sorted(supports, key=int)]
    assert names[0] == "ascending" and set(names[1:]) == set(GENRES)
    assert window.run("return ['facts', 'posters'].map((id) => document.getElementById(id).open)") == [True, False]


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_has_the_tiles_and_the_advice(window: Window, page: Path, width: int, height: int):
    assert 100 < window.open(page, width, height).lowest("h1, .tile, .advice strong") <= height


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_no_barriers(window: Window, page: Path, width: int, dark: bool):
    assert axe(window.open(page, width, dark=dark).unfold().driver) == []


def test_axe_would_find_a_barrier(window: Window, tmp_path: Path):
    (tmp_path / "grey.html").write_text('<title>t</title><main style="color:#ccc">pale</main><html lang="en">')
    (line,) = axe(window.open(tmp_path / "grey.html").driver)
    assert line.startswith("serious color-contrast: main: ") and "#cccccc" in line
