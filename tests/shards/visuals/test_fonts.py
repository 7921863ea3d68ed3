"""Fonts are found for all characters that a font of the machine has."""

from __future__ import annotations

import pytest
from matplotlib.font_manager import FontEntry, fontManager

from shards.visuals.fonts import characters_of, find_fonts


def test_the_font_of_matplotlib_comes_first_and_is_enough_for_its_letters():
    assert find_fonts(["Comédie", "Драма", "δράμα", "a b\n\x07"]).families == ("DejaVu Sans",)


def test_another_font_is_added_only_for_its_characters(monkeypatch: pytest.MonkeyPatch):
    dejavu = characters_of(find_fonts([]).files[0])
    entries = [entry for entry in fontManager.ttflist if entry.name in ("STIXGeneral", "cmr10")]
    monkeypatch.setattr(fontManager, "ttflist", entries)
    stix = next(entry.fname for entry in entries if entry.name == "STIXGeneral")
    only = sorted(c for c in characters_of(stix) - dejavu if c.isprintable() and not c.isspace())[:3]
    found = find_fonts(["Drama", *only])
    assert found.families == ("DejaVu Sans", "STIXGeneral") and not found.missing
    assert find_fonts(["Drama"]).families == ("DejaVu Sans",)
    assert find_fonts(["恐怖", *only]).missing == "怖恐"


def test_a_broken_font_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    broken = tmp_path_factory.mktemp("fonts") / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(fontManager, "ttflist", [FontEntry(fname=str(broken), name="Broken")])
    assert find_fonts(["恐"]).families == ("DejaVu Sans",)
