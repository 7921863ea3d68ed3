"""The contact sheet of ``posters clean`` in a browser: tiles first, pictures above captions, phone, paper, dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser_tools import Window
from page_checks import in_the_dark, on_paper, on_screens
from PIL import Image

from shards.clean.contact_sheet import page
from shards.clean.run import CleanOptions

SIZES = ((214, 320), (214, 320), (960, 320), (20, 320), (320, 320))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    doubt = "larger than 40% of the picture"
    rows: list[dict[str, Any]] = [
        {"id": f"poster-{n}" * (1 + 9 * (n == 1)), "text_before": 0.2, "text_after": 0.01, "altered": 0.3,
         "fill": "surround", "passes": 2, "boxes_after": 1, "skipped": [doubt] * (n % 2), "seconds": 1.5}
        for n in range(10)
    ]  # fmt: skip
    pictures = [[Image.new("RGB", SIZES[n % 5], (9 * n, 80, 60 * k)) for k in range(3)] for n in range(10)]
    options = CleanOptions(folder / "raw", folder / "out", metadata=None)
    html = page(options, rows, list(zip(rows, pictures, strict=True)), {"detector": "x" * 200, "fill": "surround"})
    (folder / "contact_sheet.html").write_text(html, encoding="utf-8")
    return folder / "contact_sheet.html"


def test_on_a_screen_and_on_a_phone(window: Window, written: Path):
    on_screens(window, written)


def test_on_paper_and_in_the_dark(window: Window, written: Path):
    pages, pictures = on_paper(window, written)
    assert 2 <= pages <= 4 and pictures == 30
    assert 0.001 < in_the_dark(window, written) < 0.2
