"""The forms of the log: text, colours on a terminal only, JSON lines, quiet."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import sys
from collections.abc import Iterator

import pytest

from shards.log_lines import Form, LineHandler, Shown, print_error
from shards.progress import progress

EVIL = "a\x1b[2Jb\u202e\nerror: forged"
RESULT = Shown("bold green", {"event": "end", "loss": 0.5, "bad": math.nan}, always=True)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of its own, whose handlers a test adds."""
    log = logging.Logger("test", logging.INFO)
    yield log
    for handler in log.handlers:
        handler.close()


def lines(log: logging.Logger, out: io.StringIO, form: Form, rank: int = 0, debug: bool = False) -> list[str]:
    """Records of each kind, as a handler writes them."""
    log.addHandler(LineHandler(form, rank, debug, out))
    log.info("a message of %s", EVIL)
    log.info("header", extra={"shown": Shown("bold", text_only=True)})
    log.info("kept", extra={"shown": RESULT})
    log.warning("careful")
    return out.getvalue().splitlines()


def test_text_is_plain_where_nobody_looks(log: logging.Logger):
    assert lines(log, io.StringIO(), "text") == [
        r"a message of a\x1b[2Jb\u202e\nerror: forged", "header", "kept", "careful"
    ]  # fmt: skip


def test_a_terminal_gets_colours_but_for_no_color(log: logging.Logger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = lines(log, Terminal(), "text")
    assert [bool(re.search(r"\x1b\[[\d;]+m", line)) for line in shown] == [False, True, True, True]
    assert r"a\x1b[2Jb\u202e\nerror: forged" in shown[0]  # what is not ours steers nothing
    log.handlers.clear()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not any("\x1b" in line for line in lines(log, Terminal(), "text"))


def test_a_long_line_is_not_broken(log: logging.Logger, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    log.addHandler(LineHandler("text", stream=(out := Terminal())))
    log.info("x" * 200)
    assert "x" * 200 in out.getvalue()


def test_json_has_one_object_per_line(log: logging.Logger):
    out = io.StringIO()
    found = [json.loads(line) for line in lines(log, out, "json", rank=1)]
    assert [record["message"] for record in found] == [f"a message of {EVIL}", "kept", "careful"]  # no header
    assert [record["level"] for record in found] == ["info", "info", "warning"]
    assert all(record["rank"] == 1 and record["logger"] == "test" and record["time"][10] == "T" for record in found)
    assert found[1]["event"] == "end" and found[1]["loss"] == 0.5 and found[1]["bad"] is None
    assert out.getvalue().isascii() and "\x1b" not in out.getvalue()


def test_quiet_has_warnings_and_results(log: logging.Logger):
    assert lines(log, io.StringIO(), "quiet") == ["kept", "careful"]


def test_debug_adds_time_level_and_rank(log: logging.Logger):
    shown = lines(log, io.StringIO(), "text", debug=True)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) \[rank 0\] ", line) for line in shown)


def test_other_ranks_have_their_number(log: logging.Logger):
    assert lines(log, io.StringIO(), "text", rank=3)[-1] == "[rank 3] careful"


@pytest.mark.parametrize(
    ("form", "debug", "said"),
    [
        ("text", False, r"error: wrong a\x1b[2Jb\u202e\nerror: forged" + "\n"),
        ("text", True, "Traceback"),
        ("json", False, '"code": "option-value", "status": 2}\n'),
        ("json", True, '"traceback": "Traceback'),
    ],
)
def test_the_error_at_the_end(form: Form, debug: bool, said: str, monkeypatch: pytest.MonkeyPatch):
    root, out = logging.Logger("root"), io.StringIO()
    root.addHandler(LineHandler(form, debug=debug, stream=out))
    monkeypatch.setattr(logging, "getLogger", lambda name=None: root)
    monkeypatch.setattr(sys, "stderr", out)
    try:
        raise ValueError(EVIL)
    except ValueError:
        print_error(f"wrong {EVIL}", {"code": "option-value", "status": 2}, trace=True)
    last = out.getvalue().splitlines()[-1]
    assert said in out.getvalue() and ("Traceback" in out.getvalue()) == debug
    assert not set(out.getvalue()) & {"\x1b", "\u202e"}
    if form == "json":
        (found,) = map(json.loads, out.getvalue().splitlines())
        assert found["message"] == f"wrong {EVIL}" and found["event"] == "error"
    elif debug:
        assert last.endswith(r"ERROR [rank 0] error: wrong a\x1b[2Jb\u202e\nerror: forged")


def test_a_short_epoch_leaves_no_bar(monkeypatch: pytest.MonkeyPatch):
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress(3, "epoch 1/2", lasting=False) as bar:
            bar.update(3)
        assert ("epoch 1/2" in stream.getvalue()) == shown and not stream.getvalue().endswith("\n")
