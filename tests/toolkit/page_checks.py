"""What every page with tiles must do in a browser: on screens, on paper, in the dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from browser_tools import Window, axe

SCREENS = {1280: 800, 390: 844}
#: What a page says of itself in a window.
SAID = """
const done = arguments[0];
const bottom = (part) => part.getBoundingClientRect().bottom, above = (part) => part.getBoundingClientRect().top;
const said = { tiles: document.querySelectorAll(".tile").length };
const closed = [...document.querySelectorAll("details.section:not([open])")];
said.closed = closed.length;
said.tallest = Math.max(...closed.map((part) => part.offsetHeight));
closed.forEach((part) => part.querySelector("summary").click());
said.opened = closed.filter((part) => part.open && part.offsetHeight > said.tallest).length;
for (const picture of document.images) picture.loading = "eager";
Promise.allSettled([...document.images].map((picture) => picture.decode())).then(() => {
  said.blank = [...document.images].filter((picture) => !picture.naturalWidth).length;
  said.covered = [...document.querySelectorAll("figcaption")].filter((words) =>
    [...words.closest("figure").querySelectorAll("img")].some((picture) => bottom(picture) > above(words))
  ).length;
  done(said);
});
"""


def on_screens(window: Window, page: Path, own: str = "return null") -> list[Any]:
    """What the script ``own`` returns on each screen, when all is open. Asserts what holds for each page."""
    found = []
    for width, height in SCREENS.items():
        window.open(page, width, height)
        assert 100 < window.lowest("h1, .tile, .advice strong") <= height
        said = window.driver.execute_async_script(SAID)
        assert said["tiles"] >= 3
        assert said["closed"] == said["opened"] > 0 and said["tallest"] < 80
        assert said["blank"] == said["covered"] == 0
        assert window.width() == width
        found.append(window.run(own))
    assert axe(window.unfold().driver) == []  # on the phone
    return found


def on_paper(window: Window, page: Path) -> tuple[int, int]:
    """(pages, JPEGs) of the printed page, which must ask the network for nothing."""
    window.asked()
    pdf = window.open(page).pdf()
    assert window.asked() == []
    return len(re.findall(rb"/Type\s*/Page\b", pdf)), pdf.count(b"/DCTDecode")


def in_the_dark(window: Window, page: Path) -> float:
    """Share of light pixels on the first screen, whose paper must be dark."""
    pixels = window.open(page, dark=True).pixels()
    assert pixels[2, 2].max() < 60
    assert axe(window.unfold().driver) == []
    return float((pixels.min(axis=2) > 200).mean())
