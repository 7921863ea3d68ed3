"""Templates: where they are found, what they refuse, and that they escape."""

from __future__ import annotations

from pathlib import Path

import pytest
from html_tools import HOSTILE, assert_text_only
from jinja2 import UndefinedError
from PIL import Image

import shards
from shards.visuals.templates import ENVIRONMENT, count, data_uri, number, percent, place, render, signed

ROOT = Path(shards.__file__).parent.parent
TEMPLATES = sorted(path for top in ("shards", "toolkit") for path in (ROOT / top).rglob("templates/*"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_is_found_by_its_package_and_can_be_read(path: Path):
    package = ".".join(path.parent.parent.relative_to(ROOT).parts)
    assert ENVIRONMENT.get_template(f"{package}/{path.name}").filename == str(path)


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'sections' is undefined"):
        render("shards.clean/contact_sheet.html")


def test_hostile_words_stay_words():
    row = {"id": HOSTILE}
    page = render(
        "shards.clean/contact_sheet.html", posters=[(row, [Image.new("RGB", (2, 3))] * 3)], name=HOSTILE,
        images=HOSTILE, made=HOSTILE, tiles=[{"words": HOSTILE, "value": None, "explanation": HOSTILE}],
        advice={"words": HOSTILE, "command": HOSTILE}, sections=[("posters", HOSTILE), ("facts", HOSTILE)],
        summary={"posters": 1}, lines=[(HOSTILE, HOSTILE)], facts={"device": HOSTILE}, caption=lambda row: row["id"],
        page_of=HOSTILE, painted=(1, 2, 3), skipped=(4, 5, 6),
    )  # fmt: skip
    assert_text_only(page, HOSTILE, 15)


def test_values_in_words():
    assert (number(0.12345), number(0.5, 1), number(None)) == ("0.123", "0.5", "\N{EN DASH}")
    assert (signed(0.0123), signed(-0.0123)) == ("+0.012", "\N{MINUS SIGN}0.012")
    assert (percent(0.034), percent(0.34), percent(0.34, 2), percent(None)) == ("3.4%", "34%", "34.00%", "\N{EN DASH}")
    assert (count(1234), place(0.25), place(-1.0), place(2.0)) == ("1,234", 25.0, 0.0, 100.0)
    assert data_uri(b"abc", "png") == "data:image/png;base64,YWJj"
