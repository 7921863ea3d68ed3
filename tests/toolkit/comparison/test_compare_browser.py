"""The comparison in a real browser, where there is one: names fit, the answer is on the first screen, rows sort."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_tools import BROWSER, NAMES, browse, framed, with_probe
from report_tools import decisions, inputs, said, simulate

from toolkit.comparison.build import build_comparison
from toolkit.comparison.output import render_page
from toolkit.comparison.speed import Cost

pytestmark = pytest.mark.skipif(not BROWSER, reason=f"none of {', '.join(NAMES)}")

PROBE = """
const table = document.querySelector("table.models"), seen = [innerWidth, document.documentElement.scrollWidth];
seen.push(Math.ceil(table.tHead.getBoundingClientRect().bottom));
table.tHead.rows[0].cells[5].querySelector("button").click();
seen.push(...[...table.tBodies[0].rows].map((row) => parseFloat(row.cells[5].textContent)));
parent.postMessage(seen.join(" "), "*");
"""


def test_the_answer_is_on_the_first_screen_and_the_rows_sort(tmp_path: Path):
    base = inputs(other=False)
    each = [
        type(base)(**{**vars(base), "model": said(simulate(seed)[1], decisions(), f"{seed}-{'run' * 10}", Path("m"))})
        for seed in range(3)
    ]
    costs = [Cost(speed, 1000, 1.0) for speed in (20.0, 500.0, 3.0)]
    measured = {"device": "CPU", "precision": "no", "batch_size": 32, "batches": 5}
    page = tmp_path / "index.html"
    page.write_text(render_page(build_comparison(each, costs, measured, 20)), encoding="utf-8")
    listen = "<script>onmessage = e => document.title += e.data + ';'</script>"
    widths = 360, 390, 1280
    probe = with_probe(page, tmp_path, PROBE)
    printed = browse(tmp_path, framed(tmp_path, probe, *widths, head=listen), "--dump-dom")
    parts = [part for part in re.findall(r"([\d. ]+);", printed) if part.count(" ") == 5]
    found = [[float(word) for word in part.split()] for part in parts]
    assert sorted(part[0] for part in found) == list(widths)
    for width, scrolled, top, *speeds in found:
        assert scrolled == width and speeds == [500.0, 20.0, 3.0]
        assert top < (844 if width < 500 else 800)
