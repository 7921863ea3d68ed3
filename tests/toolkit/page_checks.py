"""What every page must do in a browser, seen in three starts of the browser: on screens, on paper, in the dark."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from browser_tools import browse, with_probe
from PIL import Image

SCREENS = {1280: 800, 390: 844}
LISTEN = "<script>onmessage = e => document.title += e.data + ';;'</script>"
#: What a page says of itself in a window: ``own`` is the result of the test's script, which runs when all is open.
PROBE = """
addEventListener("load", () => {
const bottom = (part) => part.getBoundingClientRect().bottom, above = (part) => part.getBoundingClientRect().top;
const said = { width: innerWidth };
said.lowest = Math.max(...[...document.querySelectorAll("h1,.tile,.advice strong")].map(bottom));
said.tiles = document.querySelectorAll(".tile").length;
const closed = [...document.querySelectorAll("details.section:not([open])")];
said.closed = closed.length;
said.tallest = Math.max(...closed.map((part) => part.offsetHeight));
closed.forEach((part) => part.querySelector("summary").click());
said.opened = closed.filter((part) => part.open && part.offsetHeight > said.tallest).length;
said.blank = [...document.images].filter((picture) => !picture.naturalWidth).length;
said.scrolled = document.documentElement.scrollWidth;
said.covered = [...document.querySelectorAll("figcaption")].filter((words) =>
  [...words.closest("figure").querySelectorAll("img")].some((picture) => bottom(picture) > above(words))
).length;
said.own = (() => { OWN })();
parent.postMessage(JSON.stringify(said), "*");
});
"""


def on_screens(page: Path, work: Path, own: str = "") -> dict[int, dict[str, Any]]:
    """Width → what the page says of itself there. Asserts what holds for each page."""
    probe = with_probe(page, work, PROBE.replace("OWN", own))
    probe.write_text(probe.read_text(encoding="utf-8").replace(' loading="lazy"', ""), encoding="utf-8")
    # One frame below the other, each of the size of its screen.
    frames = "".join(
        f'<iframe src="{probe.as_uri()}" style="width:{width}px;height:{height}px;border:0;display:block"></iframe>'
        for width, height in SCREENS.items()
    )
    (work / "frames.html").write_text(f'<title></title>{LISTEN}<body style="margin:0">{frames}', encoding="utf-8")
    shown = browse(work, work / "frames.html", "--dump-dom")
    title = unescape(shown.split("<title>")[1].split("</title>")[0])
    found = {said["width"]: said for said in map(json.loads, title.split(";;")[:-1])}
    assert found.keys() == SCREENS.keys()
    for width, said in found.items():
        assert said["scrolled"] == width and said["tiles"] >= 3
        assert 100 < said["lowest"] <= SCREENS[width]
        assert said["closed"] == said["opened"] > 0 and said["tallest"] < 80
        assert said["blank"] == said["covered"] == 0
    return found


def on_paper(page: Path, work: Path) -> tuple[int, int]:
    """(pages, JPEGs) of the printed page, which must ask the network for nothing."""
    pdf, log = work / "page.pdf", work / "net.json"
    browse(work, page, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", f"--log-net-log={log}")
    asked = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    assert [p["url"] for p in asked if p.get("initiator", "not an origin") != "not an origin"] == []
    data = pdf.read_bytes()
    return len(re.findall(rb"/Type\s*/Page\b", data)), data.count(b"/DCTDecode")


def in_the_dark(page: Path, work: Path) -> float:
    """Share of light pixels on the first screen, whose paper must be dark."""
    out = work / "dark.png"
    dark = "--blink-settings=preferredColorScheme=0"
    browse(work, page, "--window-size=1280,800", f"--screenshot={out}", dark)
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels[2, 2].max() < 60
    return float((pixels.min(axis=2) > 200).mean())
