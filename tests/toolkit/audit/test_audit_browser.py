"""The audit page in a browser: bars of effects start in the middle and point to the side of their sign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser_tools import BROWSER, NAMES, browse, with_probe

from shards.visuals.templates import ENVIRONMENT

pytestmark = pytest.mark.skipif(not BROWSER, reason=f"none of {', '.join(NAMES)}")

PAGE = """{% extends "shards.visuals/page.html" %}{% import "toolkit.audit/pieces.html" as pieces %}
{% block title %}audit{% endblock %}{% block style %}{% include "toolkit.audit/audit.css" %}{% endblock %}
{% block content %}{{ pieces.genres(rows, ["genre", "", "titles", "text", "control", "noise"]) }}{% endblock %}
"""
#: The ends of each bar and of its cell, as distances in pixels from the axis.
PROBE = """document.title = JSON.stringify([...document.querySelectorAll("tbody tr")].map((row) => {
const axis = row.querySelector("td span").getBoundingClientRect().left;
return [row.querySelector("i"), row.cells[1]].flatMap((part) => {
const box = part.getBoundingClientRect(); return [box.left - axis, box.right - axis]; }); }))"""


def test_bars_point_to_the_side_of_their_sign(tmp_path: Path):
    effects = {"Drama": 0.08, "Comedy": -0.08}
    rows = [
        {"genre": g, "title_adds": e, "text": abs(e), "control": 0.0, "reencoding": 0.0, "gained": 0, "lost": 0}
        for g, e in effects.items()
    ]
    (tmp_path / "audit.html").write_text(ENVIRONMENT.from_string(PAGE).render(rows=rows), encoding="utf-8")
    shown = browse(tmp_path, with_probe(tmp_path / "audit.html", tmp_path, PROBE), "--dump-dom")
    above, below = json.loads(shown.split("<title>")[1].split("</title>")[0])
    assert -2 < above[0] < 2 and above[1] > 20
    assert -2 < below[1] < 2 and below[0] < -20
    for left, right, cell_left, cell_right in (above, below):
        assert cell_left <= left and right <= cell_right
