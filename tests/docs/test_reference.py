"""The generated pages of docs/reference are those that the code of today gives."""

from __future__ import annotations

import pytest
import reference

from shards.cli.options import Parser
from toolkit.cli.commands import COMMANDS


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_up_to_date(name: str):
    """If this fails, run `python docs/tools/reference.py` and commit the pages."""
    assert (reference.FOLDER / name).read_text(encoding="utf-8") == reference.PAGES[name]()


def test_every_option_and_key_is_on_a_page():
    """Also those of options that the generator would not know how to describe."""
    pages = (reference.FOLDER / "command-line.md").read_text() + (reference.FOLDER / "configuration.md").read_text()
    for name in [name for name, command in COMMANDS.items() if command.options]:
        assert f"## posters {name}\n" in pages
        for flag in Parser(name, COMMANDS).flags:
            shown = flag if flag.startswith("-") else flag.upper()
            assert flag in ("-h", "--help") or f"`{shown}`" in pages, (name, flag)


def test_text_of_help_is_text_of_a_table():
    assert reference.plain("a|b  *.jpg\n``x|y`` <z>") == r"a\|b \*.jpg `x\|y` \<z>"
