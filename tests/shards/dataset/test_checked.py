"""What a node's first process has checked, its others believe: the same file, unchanged, for the same purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shard_tools import environment

from shards.dataset.checked_files import CHECK_AGAIN_SECONDS, once_per_node

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs users and modes")


@pytest.fixture(autouse=True)
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where marks are kept, empty."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp" / f"posters-checked-{os.getuid()}"


def checks(path: Path, expected: str = "digest", times: int = 2) -> int:
    """How often the check runs."""
    ran = []
    for _ in range(times):
        with open(path, "rb") as stream:
            once_per_node([(path, path.stat())], expected, lambda: ran.append(stream.read()))
    return len(ran)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"abc")
    return tmp_path / "file"


def test_once_for_a_file_and_purpose(file: Path, marks: Path) -> None:
    assert checks(file) == 1 and checks(file) == 0
    assert checks(file, "another digest") == 1
    assert marks.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_size == 0 for path in marks.iterdir())


def test_again_when_it_changed(file: Path) -> None:
    assert checks(file) == 1
    facts = file.stat()
    file.write_bytes(b"abd")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as if nothing had happened
    assert checks(file) == 1
    os.replace(file, file.with_name("away"))
    file.write_bytes(b"abd")
    assert checks(file) == 1


def test_what_failed_is_not_believed(file: Path) -> None:
    def fail() -> None:
        raise ValueError("not the file")

    for _ in range(2):
        with pytest.raises(ValueError, match="not the file"):
            once_per_node([(file, file.stat())], "digest", fail)
    assert checks(file) == 1


def test_not_for_ever(file: Path, marks: Path) -> None:
    assert checks(file) == 1
    (mark,) = (path for path in marks.iterdir() if len(path.name) == 64)
    long_ago = mark.stat().st_mtime - CHECK_AGAIN_SECONDS - 9
    os.utime(mark, (long_ago, long_ago))
    assert checks(file, "another digest") == 1 and not mark.exists()
    assert checks(file) == 1


@pytest.mark.parametrize("planted", ["a link", "a file", "open to others"])
def test_a_folder_that_others_planted_is_not_believed(file: Path, marks: Path, tmp_path: Path, planted: str) -> None:
    assert checks(file) == 1
    elsewhere = tmp_path / "elsewhere"
    os.replace(marks, elsewhere)
    if planted == "a link":
        marks.symlink_to(elsewhere)
    elif planted == "a file":
        marks.touch()
    else:
        os.replace(elsewhere, marks)
        marks.chmod(0o777)
    assert checks(file) == 2  # every process for itself


def test_where_nothing_can_be_kept_every_process_checks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(file / "no folder"))
    assert checks(file) == 2


def test_the_others_wait_for_the_first(file: Path, tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from shards.dataset.checked_files import once_per_node
        path, ran = Path(sys.argv[1]), Path(sys.argv[2])
        def check():
            time.sleep(0.3)
            with open(ran, "a") as out:
                out.write("x")
        once_per_node([(path, path.stat())], "digest", check)
        sys.exit(not ran.exists())
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(file), str(tmp_path / "ran")]
    env = environment(TMPDIR=str(tmp_path / "tmp"))
    started = [subprocess.Popen(command, env=env) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert (tmp_path / "ran").read_text() == "x"
