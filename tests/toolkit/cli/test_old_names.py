"""Options and keys under the names of earlier versions: read as today's, with one line that says the new name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from shards.cli.options import Parser
from toolkit.cli.commands import COMMANDS, read

TRAIN = ["train", "--shards", "s", "--out", "o"]
CLEAN = ["clean", "--images", "i", "--metadata", "m", "--out", "o"]
TUNE = ["tune", "--model", "m", "--shards", "s"]
REFEREE = ["referee", "--images", "i", "--cleaned", "c"]
PREDICT = ["predict", "--model", "m", "--image", "i"]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "is called" in record.getMessage()]


def value(options: Any, path: str) -> Any:
    for name in path.split("."):
        options = getattr(options, name)
    return options


@pytest.mark.parametrize(
    ("command", "old", "new", "path", "expected"),
    [
        (TUNE, ["--slack", "0.2"], "--max-micro-f-loss", "decide.max_micro_f_loss", 0.2),
        (TUNE, ["--slack=0.2"], "--max-micro-f-loss", "decide.max_micro_f_loss", 0.2),
        (TUNE, ["--patience", "7"], "--remote-timeout", "cache.remote_timeout", 7.0),
        (TRAIN, ["--patience", "7"], "--remote-timeout", "cache.remote_timeout", 7.0),
        (TRAIN, ["--decide.slack", "0.2"], "--decide.max_micro_f_loss", "config.decide.max_micro_f_loss", 0.2),
        (CLEAN, ["--looks", "256"], "--scales", "text.detector.scales", ((256,),)),
        (CLEAN, ["--take-over"], "--break-lock", "break_lock", True),
        (REFEREE, ["--no-anchor"], "--no-reference-strip", "referee.reference_strip", False),
        (REFEREE, ["--anchor"], "--reference-strip", "referee.reference_strip", True),
        (PREDICT, ["--output", "x.csv"], "--out", "out", Path("x.csv")),
        (PREDICT, ["--workers", "3"], "--threads", "threads", 3),
    ],
)
def test_an_old_option_is_todays_with_one_line(
    command: list[str], old: list[str], new: str, path: str, expected: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _, options = read([*command, *old])
    assert value(options, path) == expected
    (line,) = lines(caplog)
    assert new in line and line.startswith(old[0].partition("=")[0])


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.options])
def test_help_shows_new_names_only(name: str) -> None:
    parser = Parser(name, COMMANDS)
    assert not {*parser.old} & {*parser.flags}
    assert not any(f" {old} " in parser.format_help() for old in parser.old)


def test_an_old_key_of_a_file_is_todays_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "old.yaml"
    file.write_text("decide:\n  slack: 0.2\n  aim: f0.5\n")
    _, options = read([*TRAIN, "--config", str(file)])
    assert options.config.decide.max_micro_f_loss == 0.2 and options.config.decide.aim == "f0.5"
    assert lines(caplog) == ["decide.slack is called decide.max_micro_f_loss in this version"]


@pytest.mark.parametrize("name", ["--decide.max_micro_f_loss", "--decide.slack"])
def test_the_command_line_wins_over_an_old_key_of_a_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("decide: {slack: 0.2}\n")
    for given in (0.01, 0.05):
        for words in ([name, str(given)], [f"{name}={given}"]):
            assert read([*TRAIN, "--config", str(file), *words])[1].config.decide.max_micro_f_loss == given
