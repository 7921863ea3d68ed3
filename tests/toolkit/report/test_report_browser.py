"""The page in a real browser, where there is one: on a phone and a desk, in the dark, on paper, without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from browser_tools import BROWSER, NAMES, browse, framed, with_probe
from PIL import Image
from report_tools import GENRES, inputs

from toolkit.report.build import Report, build_report
from toolkit.report.output import render_page

ALL_OPEN = "document.querySelectorAll('details.section').forEach(part => { part.open = true; });"

pytestmark = pytest.mark.skipif(not BROWSER, reason=f"none of {', '.join(NAMES)}")


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(inputs(), label_errors=False, rounds=20)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render_page(report), encoding="utf-8")
    return path


def picture(work: Path, page: Path, width: int, height: int, *options: str) -> np.ndarray:
    """(height, width, 3) of the window's upper left corner."""
    out = work / "shot.png"
    browse(work, page, f"--window-size={max(width, 500)},{height}", f"--screenshot={out}", *options)
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB"))[:height, :width]


def test_a_phone_need_not_scroll_sideways(page: Path, tmp_path: Path):
    widths = (360, 390, 1280)
    probe = f"{ALL_OPEN} parent.postMessage([innerWidth, document.documentElement.scrollWidth], '*')"
    probed = with_probe(page, tmp_path, probe)
    listen = "<script>onmessage = e => document.title += e.data.join(' of ') + ';'</script>"
    printed = browse(tmp_path, framed(tmp_path, probed, *widths, head=listen), "--dump-dom")
    found = re.findall(r"(\d+) of (\d+);", printed)
    assert sorted(found) == sorted((str(width), str(width)) for width in widths)


@pytest.mark.parametrize("width", [390, 1280])
def test_there_is_something_to_see(page: Path, tmp_path: Path, width: int):
    height = 2400
    shown = with_probe(page, tmp_path, ALL_OPEN)
    shown = shown if width >= 500 else framed(tmp_path, shown, width, height=height)
    pixels = picture(tmp_path, shown, width, height)
    assert pixels.shape == (height, width, 3)
    paper = pixels[2, 2].astype(int)
    assert paper.min() > 220
    for band in np.array_split(pixels, 6):  # nowhere is it empty
        inked = (np.abs(band.astype(int) - paper).max(axis=2) > 60).mean()
        assert 0.005 < inked < 0.6
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200


def test_in_the_dark_nothing_stays_white(page: Path, tmp_path: Path):
    shown = with_probe(page, tmp_path, ALL_OPEN)
    pixels = picture(tmp_path, shown, 1280, 12_000, "--blink-settings=preferredColorScheme=0")
    light = pixels.min(axis=2) > 230
    assert pixels[2, 2].max() < 60 and 0.0005 < light.mean() < 0.05  # letters, and no plot's background


def test_it_prints(page: Path, report: Report, tmp_path: Path):
    out = tmp_path / "page.pdf"
    browse(tmp_path, page, "--no-pdf-header-footer", f"--print-to-pdf={out}")
    pdf = out.read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pdf.startswith(b"%PDF-") and 4 <= pages <= 30
    reader = shutil.which("pdftotext")
    if reader is None:  # of poppler-utils
        assert len(pdf) > 200_000
        return
    text = subprocess.run([reader, str(out), "-"], capture_output=True, text=True, check=True).stdout
    words = " ".join(text.split())
    assert report.numbers["verdict"]["sentence"] in words
    for heading in ("Metrics", "Metrics per genre", "Calibration per genre", "Model and data"):
        assert heading in words


def requests(work: Path, page: Path) -> list[str]:
    """Addresses that the page asks for; the browser's own requests have no origin."""
    log = work / "net.json"
    browse(work, page, f"--log-net-log={log}", "--dump-dom")
    asked = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    return [p["url"] for p in asked if p.get("initiator", "not an origin") != "not an origin"]


def test_it_asks_for_nothing(page: Path, tmp_path: Path):
    curious = tmp_path / "curious.html"
    curious.write_text('<img src="http://poster.invalid/1.png">')
    assert requests(tmp_path, curious) == ["http://poster.invalid/1.png"]  # it would be seen
    assert requests(tmp_path, page) == []


SORTING = """
const say = (words) => { document.title += words.join(",") + ";"; };
const table = document.querySelector("#genres table");
const [genre, support] = table.tHead.querySelectorAll("button");
const column = (place) => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);
for (const button of [support, support, genre]) {
  button.click();
  say([button.closest("th").getAttribute("aria-sort"), ...column(button === genre ? 0 : 1)]);
}
document.querySelector('nav a[href="#facts"]').click();
setTimeout(() => say([document.getElementById("facts").open, document.getElementById("posters").open]), 50);
"""


def test_a_table_is_sorted_and_a_link_opens_its_section(page: Path, report: Report, tmp_path: Path):
    shown = browse(tmp_path, with_probe(page, tmp_path, f"document.title = '';{SORTING}"), "--dump-dom")
    title = unescape(re.findall("<title>(.*?)</title>", shown)[0])
    down, up, names, opened = title.rstrip(";").split(";")[-4:]
    supports = [str(row["support"]) for row in report.numbers["per_genre"]]
    assert down.split(",") == ["descending", *sorted(supports, key=int, reverse=True)]
    assert up.split(",") == ["ascending", *sorted(supports, key=int)]
    assert names.split(",")[0] == "ascending" and set(names.split(",")[1:]) == set(GENRES)
    assert opened == "true,false"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_first_screen_has_the_tiles_and_the_advice(page: Path, tmp_path: Path, width: int, height: int):
    ends = "[...document.querySelectorAll('h1,.tile,.advice strong')].map(part => part.getBoundingClientRect().bottom)"
    probed = with_probe(page, tmp_path, f"parent.postMessage([Math.max(...{ends})], '*')")
    listen = "<script>onmessage = e => document.title += e.data.join(',') + ';'</script>"
    shown = browse(tmp_path, framed(tmp_path, probed, width, height=height, head=listen), "--dump-dom")
    (lowest,) = re.findall(r"<title>([\d.]+);</title>", shown)
    assert 100 < float(lowest) <= height
