"""What is printed steers no terminal; a reader that has gone or a full disk ends no command."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

from shards.console import console, exact_stdout, standard_streams

ROOT = Path(__file__).resolve().parents[2]
EVIL = "a\x1b[2Jb\x9bc\u202ed\rf\udce9"
SHOWN = r"a\x1b[2Jb\x9bc\u202ed\rf\udce9"

COMMAND = f"""
import logging, sys, warnings
import toolkit.cli.main as cli
from shards.console import exact_stdout
from shards.errors import UserError
evil = {EVIL!r}
def main(argv):
    print("text", evil)
    logging.info("record %s %d", evil + "\\nerror: forged", 3)
    logging.warning("text " + evil)
    warnings.warn(evil)
    exact_stdout().write("data " + evil.replace("\\udce9", "é") + "\\n")
    print("x" * 100_000)
    open(argv[0], "w").write("results")
    if argv[1:]:
        raise UserError("option-value", "wrong " + evil + "\\nerror: forged")
    return 0
cli.main = main
cli.run()
"""


def run(
    *arguments: object, encoding: str = "utf-8", stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PATH": ""},
        timeout=60,
        stdout=stdout,
        stderr=stderr,
    )


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_text_errors_records_and_warnings_are_printable(tmp_path: Path, encoding: str) -> None:
    done = run(tmp_path / "out", "fail", encoding=encoding)
    out, err = done.stdout.decode(encoding).splitlines(), done.stderr.decode(encoding).splitlines()
    assert done.returncode == 2 and out[0] == f"text {SHOWN}"
    assert err[0] == rf"record {SHOWN}\nerror: forged 3" and err[1] == f"text {SHOWN}"
    assert err[2].endswith(f"UserWarning: {SHOWN}")
    assert err[-1] == rf"error: wrong {SHOWN}\nerror: forged"
    data = EVIL.replace("\udce9", "é")
    exact = data if encoding == "utf-8" else data.encode("ascii", "backslashreplace").decode()
    assert f"data {exact}\n" in done.stdout.decode(encoding)


def test_a_reader_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    for both in (False, True):
        read, write = os.pipe()
        os.close(read)
        done = run(tmp_path / f"{both}", stdout=write, stderr=write if both else subprocess.PIPE)
        os.close(write)
        assert done.returncode == 0 and (tmp_path / f"{both}").read_text() == "results"
        assert both or (b"Traceback" not in done.stderr and b"Exception" not in done.stderr)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line_after_the_work(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run(tmp_path / "out", stdout=full)
        assert done.returncode == 2 and (tmp_path / "out").read_text() == "results"
        last = done.stderr.decode().splitlines()[-1]
        assert last.startswith("error: standard output cannot be written (No space left on device)")
        assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
        helped = subprocess.run(
            [sys.executable, "-c", "from toolkit.cli.main import run; run()", "--help"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert helped.returncode == 2 and helped.stderr.count(b"\n") == 1
        # stderr that is full silences messages, not the work
        assert run(tmp_path / "quiet", stderr=full).returncode == 0 and (tmp_path / "quiet").exists()


def test_streams_that_are_closed_from_the_start(tmp_path: Path) -> None:
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {COMMAND!r}, sys.argv[1]]))"
    shell = 'exec "$0" -c "$1" "$2" >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, sys.executable, code, str(tmp_path / "out")], cwd=ROOT)
    assert done.returncode == 0 and (tmp_path / "out").read_text() == "results"


def test_tables_show_text_as_it_is_but_for_what_steers() -> None:
    out = io.StringIO()
    table = Table(title=Text(EVIL))
    table.add_column("[red]:heart:")
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console(out, 200).print(table)
    text = out.getvalue()
    assert text.replace(r"\r", "").count(SHOWN.replace(r"\r", "")) == 3  # rich drops \r from its own Text
    assert "[red]:heart:" in text
    assert not set(text) & set("\x1b\x9b\u202e\r\udce9")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_exact_data_and_keeps_the_style_of_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := _Terminal())
    with standard_streams():
        exact_stdout().write(EVIL)
        assert terminal.getvalue() == SHOWN
        console(width=80).print(Text("bold", style="bold"))
    assert "\x1b[1mbold\x1b[0m" in terminal.getvalue()
    assert sys.stdout is terminal


def test_consoles_are_made_in_one_place() -> None:
    for package in ("shards", "toolkit", "launch"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "console.py":
                called = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
                assert not [f for f in called if isinstance(f, ast.Name) and f.id == "Console"], path
