"""The audit page in a real browser: tiles first, sections, sorting, phone, paper, dark; bars point to their side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser_tools import Window

pytest.importorskip("cv2")

from audit_tools import Mean, audit, write_anywhere
from page_checks import in_the_dark, on_paper, on_screens

from toolkit.audit.results import page

#: Genres in the order of their column "effect of titles", after a click on its header. For each bar and its cell: the
#: distance of their ends in pixels from the axis.
OWN = """
const table = document.querySelector("#genres table");
table.tHead.rows[0].cells[2].querySelector("button").click();
return [...table.tBodies[0].rows].map((row) => {
  const axis = row.querySelector("td span").getBoundingClientRect().left;
  return [row.cells[0].textContent, ...[row.querySelector("i"), row.cells[1]].flatMap((part) => {
    const box = part.getBoundingClientRect(); return [box.left - axis, box.right - axis]; })];
});
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = write_anywhere(tmp_path_factory.mktemp("anywhere"))
    targets = {f"p{n:02d}": np.array([n % 2, n % 3 == 0, True], bool) for n in range(60)}
    _, report, examples = audit(Mean(), folders, targets, limit=40)
    for row, effect in zip(report["genres"], (0.08, -0.08, 0.02), strict=True):
        row["title_adds"] = effect
    report["command"]["images"] = "posters/" * 20  # a long path must not make the page wide
    path = tmp_path_factory.mktemp("page") / "audit.html"
    path.write_text(page(report, examples), encoding="utf-8")
    return path


def test_on_a_screen_and_on_a_phone(window: Window, written: Path):
    for first, second, third in on_screens(window, written, OWN):
        assert [first[0], second[0], third[0]] == ["Comedy", "Horror", "Drama"]  # 0.08, 0.02, -0.08
        assert -2 < first[1] < 2 and first[2] > 20
        assert -2 < third[2] < 2 and third[1] < -20
        for _, left, right, cell_left, cell_right in (first, second, third):
            assert cell_left <= left and right <= cell_right


def test_on_paper_and_in_the_dark(window: Window, written: Path):
    pages, pictures = on_paper(window, written)
    assert 3 <= pages <= 12 and pictures >= 24 * 3
    assert 0.001 < in_the_dark(window, written) < 0.2
