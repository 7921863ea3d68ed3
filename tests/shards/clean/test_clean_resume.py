"""``posters clean`` once more: finished work is kept, changed work done again, and a kill at any time loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from failing import fails
from shard_tools import Source, encoded, environment, write_file
from text_tools import (
    QUICK,
    clean,
    clean_command,
    jpegs,
    one_line_error,
    poster,
    run_clean,
    titled_posters,
    write_meta,
    written,
)

from shards.clean.run import CleanOptions
from shards.clean.task import CHUNK, CleanTask, clean_chunk
from shards.errors import UserError
from shards.storage.files import PARTIAL, sha256_file
from shards.text.masks import MaskOptions
from shards.text.pipeline import TextRemoval, removal_fingerprint
from shards.text.report import read_report


@pytest.fixture
def few(tmp_path: Path) -> Source:
    """Three small posters that a test may spoil."""
    return titled_posters(tmp_path, 3, (96, 144))


# --- a second run


def test_the_same_command_again_does_nothing(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run_clean(few, out).cleaned_now == 3
    before, rows = written(out), read_report(out)
    again = run_clean(few, out)
    assert again.cleaned_now == 0 and written(out) == before
    assert read_report(out).map(repr).equals(rows.map(repr))  # seconds too: of the day it was done
    assert run_clean(few, out, workers=2, sheet=3).cleaned_now == 0 and written(out) == before


def test_another_option_or_poster_is_done_again(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    before = jpegs(out)
    wide = TextRemoval(QUICK, MaskOptions(margin=0.6))
    assert run_clean(few, out, text=wide).cleaned_now == 3
    assert set(before.items()).isdisjoint(jpegs(out).items())
    assert run_clean(few, out, quality=50).cleaned_now == 3
    assert run_clean(few, out).cleaned_now == 3 and jpegs(out) == before
    write_file(few.images / "t0001.jpg", encoded(poster("another", (96, 144))))
    assert run_clean(few, out).cleaned_now == 3
    assert {name for name, digest in jpegs(out).items() if before[name] != digest} == {"t0001.jpg"}
    before = jpegs(out)
    (out / "t0002.jpg").unlink()
    assert run_clean(few, out).cleaned_now == 3 and jpegs(out) == before
    (out / "t0002.jpg").write_bytes(b"short")
    assert run_clean(few, out).cleaned_now == 3 and jpegs(out) == before


def test_a_poster_that_left_the_csv_leaves_the_folder(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    # A run with an id "sub/x" was killed while it wrote that poster.
    list_of_ours = out / ".posters-clean.json"
    kept = json.loads(list_of_ours.read_text())
    list_of_ours.write_text(json.dumps(kept | {"ids": [*kept["ids"], "sub/x"]}))
    left_by_a_kill = write_file(out / "sub" / f"x.jpg.123{PARTIAL}", b"half")
    write_meta(tmp_path, {"t0000": ("Drama",), "t0002": ("Drama",)})
    run_clean(few, out)
    assert set(jpegs(out)) == {"t0000.jpg", "t0002.jpg"} and list(read_report(out)["id"]) == ["t0000", "t0002"]
    assert not left_by_a_kill.exists()


def test_a_run_that_fails_takes_the_report_of_the_last_one_away(few: Source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_clean(few, out)
    (out / "t0001.jpg").unlink()
    (out / "t0001.jpg").mkdir()  # no poster can be put there
    with pytest.raises(UserError, match=r"posters t0000 to t0002 \(IsADirectoryError.*kept"):
        run_clean(few, out, quality=50)
    with fails("path-missing", out / "clean_report.parquet"):
        read_report(out)


def test_a_poster_that_changes_meanwhile_is_one_line(few: Source, tmp_path: Path) -> None:
    samples = tuple((name, sha256_file(few.images / f"{name}.jpg"), f"{name}.jpg") for name in few.good)
    answer = tmp_path / "answer.json"
    options = CleanOptions(images=few.images, metadata=few.csv, out=tmp_path / "out", text=TextRemoval(QUICK))
    task = CleanTask(options, samples, removal_fingerprint(options.text), answer)
    write_file(few.images / "t0001.jpg", encoded(poster("another")))
    with fails("file-changed", "t0001", few.images, "its bytes differ"):
        clean_chunk(task)
    (few.images / "t0001.jpg").unlink()
    with fails("file-changed", "t0001", few.images, "missing file"):
        clean_chunk(task)
    assert not answer.exists()


# --- processes that are stopped


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "toolkit", *arguments]
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=environment()
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_kill_9(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    many = titled_posters(tmp_path, CHUNK + 8, (64, 96))
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_clean(many, whole)
    process = start(*clean_command(many, out, "--sheet", 0))
    end = time.monotonic() + 60
    while not (out / ".work" / "clean-000000.json").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    with fails("path-missing", out / "clean_report.parquet"):
        read_report(out)
    before = written(out)
    assert CHUNK <= len(before) < len(many.good)
    assert {n: d for n, d in jpegs(out).items() if n in before} == {n: jpegs(whole)[n] for n in before}
    said = clean(many, out, "--sheet", 0)
    assert f"{CHUNK} of {len(many.good)} posters were cleaned before and are kept" in said
    first = [f"t{number:04d}.jpg" for number in range(CHUNK)]
    assert {name: written(out)[name] for name in first} == {name: before[name] for name in first}
    assert jpegs(out) == jpegs(whole) and not list(out.rglob(f"*{PARTIAL}"))


def test_two_at_work_in_one_folder(few: Source, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    out = tmp_path / "out"
    process = start(*clean_command(few, out))
    end = time.monotonic() + 60
    while not (out / ".posters-clean.json").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)
    assert "another process is working" in one_line_error(lambda: run_clean(few, out))
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(60) == 0 and set(jpegs(out)) == {f"{name}.jpg" for name in few.good}
