"""Files are whole or absent; a folder has one builder at a time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from failing import fails
from shard_tools import environment

from shards.errors import one_line
from shards.storage.files import (
    PARTIAL,
    atomic_write,
    fingerprint,
    place_key,
    read_json,
    remove_partials,
    sha256_file,
    write_json,
)
from shards.storage.lock import folder_lock


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_write(path) as stream:
        stream.write(b"half")
        assert [p.name for p in path.parent.iterdir() if p != path] != []  # it is written beside, on one disk
        raise RuntimeError
    assert read_json(path, "x") == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_the_final_name_appears_last(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with atomic_write(path) as stream:
        stream.write(b"whole")
        stream.flush()
        assert not path.exists()
        (leftover,) = tmp_path.iterdir()
        assert leftover.name.endswith(PARTIAL)
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]


def test_json_is_stable_and_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x", {"b": "日本", "a": [1]})
    assert (tmp_path / "x").read_bytes() == '{\n  "b": "日本",\n  "a": [\n    1\n  ]\n}\n'.encode()
    with pytest.raises(ValueError):
        write_json(tmp_path / "y", float("nan"))
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1] [2]"])
def test_broken_json_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with fails("path-unreadable", "labels file", tmp_path / "x.json"):
        read_json(tmp_path / "x.json", "labels file")


def test_absent_json_and_directories(tmp_path: Path) -> None:
    with fails("path-missing", "labels file", tmp_path / "x.json"):
        read_json(tmp_path / "x.json", "labels file")
    with fails("path-unreadable", tmp_path):
        read_json(tmp_path, "labels file")


def test_checksums(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # over one block
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()
    assert fingerprint({"b": 1, "a": [2]}) == fingerprint({"a": [2], "b": 1}) != fingerprint({"a": [2], "b": 2})


def test_only_partials_are_removed(tmp_path: Path) -> None:
    for name in ("a.tar", "a.tar.12.partial", "b.index.parquet.7.partial", "partial.txt"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "partial.txt"]


HOLD = """
import sys, time
from pathlib import Path
from shards.storage.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_holder_at_a_time_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with fails("path-locked", tmp_path):
            with folder_lock(tmp_path):
                pytest.fail("two processes hold one lock")
    finally:
        other.kill()
        other.wait()
    with folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):  # released by the block's end
        pass


def test_errors_of_the_block_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="a poster"):
        with folder_lock(tmp_path):
            raise PermissionError("a poster")


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with fails("path-unwritable", folder):
            with folder_lock(folder):
                pass


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"


def test_paths_of_one_place_have_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = place_key(tmp_path)
    assert key("a//b") == key("./a/b") == key("a/b/") != key("A/b") and not list(tmp_path.iterdir())
    # a file system that knows neither case nor Unicode form
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name.endswith(PARTIAL) or exists(path))
    key = place_key(tmp_path)
    assert key("\u00c9t\u00e9") == key("E\u0301te\u0301") == key("\u00e9t\u00c9") != key("ete")


def test_a_name_that_is_no_text_is_written_as_an_escape(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"path": "caf\udce9"})
    assert read_json(tmp_path / "x.json", "test") == {"path": "caf\udce9"}
    with atomic_write(tmp_path / "x.html", "w") as stream:
        stream.write("<p>caf\udce9")
    assert (tmp_path / "x.html").read_text() == r"<p>caf\udce9"


def test_json_that_is_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with fails("path-unreadable", "facts", tmp_path / "x.json"):
        read_json(tmp_path / "x.json", "facts")
