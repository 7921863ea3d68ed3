"""The guides: each command has options that exist, each piece of Python parses."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from shards.cli.commands import choose
from shards.cli.log_options import split_options
from shards.cli.options import Parser
from toolkit.cli.commands import COMMANDS, POSTERS

ROOT = Path(__file__).resolve().parents[2]
#: The commands of extend.md need files that the page shows: test_extend.py runs them.
PAGES = sorted(set((ROOT / "docs" / "guides").glob("*.md")) - {ROOT / "docs" / "guides" / "extend.md"})
#: (language, content) of each block of code.
BLOCKS = [found for page in PAGES for found in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)]
LINES = [line for kind, text in BLOCKS if not kind for line in text.replace("\\\n", " ").splitlines()]


def command_of(line: str) -> str:
    """A line of a block as a command of `posters`. Empty for other programs."""
    launched = re.sub(r"^accelerate launch --config_file \S+\s+launch/(\w+)\.py", r"posters \1", line)
    return launched if launched.startswith("posters ") else ""


def words_of(command: str) -> list[str]:
    """The words after `posters`, without the options of every command and without a redirection of output."""
    return split_options(shlex.split(re.split(r" 2?> ", command)[0])[1:])[1]


#: Once each, in the order of the pages.
SHOWN = list(dict.fromkeys(filter(None, map(command_of, LINES))))


@pytest.mark.parametrize("command", SHOWN)
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Its options exist, have possible values and go together. Folders and images of the examples need not exist."""
    monkeypatch.chdir(ROOT)  # configs/ is there
    command = command.replace("--config my.yaml", "--config best")
    name, words = choose(COMMANDS, words_of(command), POSTERS)
    parser = Parser(name, COMMANDS)
    if "--print_config" in words:
        with pytest.raises(SystemExit) as ended:
            parser.parse(words)
        assert not ended.value.code and "batch_size" in capsys.readouterr().out
        return
    parsed = parser.parse(words)
    if name != "audit":  # which looks for its folders at once
        parser.make(parsed)


def test_the_guides_show_every_command():
    """All but the demo, which has a page of its own."""
    names = {choose(COMMANDS, words_of(command), POSTERS)[0] for command in SHOWN}
    assert {name for name, command in COMMANDS.items() if command.options} - names == {"demo"}


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "python"])
def test_python_parses(text: str):
    ast.parse(text)
