"""The comparison in a real browser, where there is one: names fit, the answer is on the first screen, rows sort."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser_tools import Window, axe, printed_words
from report_tools import decisions, inputs, said, simulate

from toolkit.comparison.build import build_comparison
from toolkit.comparison.output import render_page
from toolkit.comparison.speed import Cost

SPEEDS = """
const table = document.querySelector("table.models");
table.tHead.rows[0].cells[5].querySelector("button").click();
return [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[5].textContent));
"""
#: By how many pixels the words of each header stand out of its cell.
TOO_LONG = """
return [...document.querySelectorAll("th button")].map((button) => {
  const words = document.createRange(), cell = button.parentElement.getBoundingClientRect();
  words.selectNodeContents(button);
  const { left, right } = words.getBoundingClientRect();
  return Math.max(cell.left - left, right - cell.right);
});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = inputs(other=False)
    each = [
        type(base)(**{**vars(base), "model": said(simulate(seed)[1], decisions(), f"{seed}-{'run' * 10}", Path("m"))})
        for seed in range(3)
    ]
    costs = [Cost(speed, 1000, 1.0) for speed in (20.0, 500.0, 3.0)]
    measured = {"device": "CPU", "precision": "no", "batch_size": 32, "batches": 5}
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render_page(build_comparison(each, costs, measured, 20)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "height"), [(360, 844), (390, 844), (1280, 800)])
def test_the_answer_is_on_the_first_screen_and_long_names_fit(window: Window, page: Path, width: int, height: int):
    window.open(page, width, height)
    assert 100 < window.lowest("h1, .lead, main > .card thead") < height
    assert window.unfold().width() == width
    too_long = window.run(TOO_LONG)
    assert len(too_long) == 7 + 4 and max(too_long) < 1


def test_the_rows_sort(window: Window, page: Path):
    assert window.open(page).run(SPEEDS) == [500.0, 20.0, 3.0]


def test_it_prints_whole(window: Window, page: Path):
    words = printed_words(window.open(page).pdf())
    assert len(window.headings()) == 5
    for text in (*window.headings(), "subset accuracy", "labels fingerprint"):  # also in the folded sections
        assert text in words


def test_it_asks_for_nothing(window: Window, page: Path):
    window.asked()
    window.open(page).unfold()
    assert window.asked() == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_no_barriers(window: Window, page: Path, width: int, dark: bool):
    assert axe(window.open(page, width, dark=dark).unfold().driver) == []
