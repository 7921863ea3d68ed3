"""Work in a remote folder: its claim, at stores of every kind, and that one file of it is no pattern for others."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest
from failing import fails
from fsspec.implementations.memory import MemoryFileSystem

from shards.storage.files import names_in, read_present, remove_file
from shards.storage.lock import LOCK_NAME, remote_lock
from shards.storage.paths import StoragePath, storage_path

OTHER = {"token": "another", "machine": "there/1", "host": "there", "pid": 7, "since": "noon"}


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> StoragePath:
    return storage_path(f"memory://{request.node.name.translate(str.maketrans('[]*', '---'))}")


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have exclusive creation fail."""
    real = MemoryFileSystem.pipe_file

    def pipe_file(self: Any, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if mode == "create":
            raise error
        real(self, path, value, mode=mode, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)


UNKNOWN = [
    NotImplementedError("no such mode"),
    ValueError("mode"),
    TypeError("unexpected keyword argument 'mode'"),
    OSError(errno.ENOSYS, "NotImplemented"),
    OSError(errno.EINVAL, "PreconditionFailed"),
]


@pytest.mark.parametrize("error", [None, *UNKNOWN], ids=str)
def test_whoever_comes_second_is_refused(error: Exception | None, folder: StoragePath, monkeypatch: pytest.MonkeyPatch):
    if error is not None:
        refusing(monkeypatch, error)
    with remote_lock(folder):
        held = (folder / LOCK_NAME).read_bytes()
        with fails("path-locked", "memory://"), remote_lock(folder):
            pass
        assert (folder / LOCK_NAME).read_bytes() == held
    assert not (folder / LOCK_NAME).exists()
    (folder / LOCK_NAME).write_bytes(json.dumps(OTHER).encode())
    with fails("path-locked", "process 7", "there", "noon", "--break-lock"):
        with remote_lock(folder):
            pass
    assert json.loads((folder / LOCK_NAME).read_bytes()) == OTHER
    with remote_lock(folder, break_lock=True):
        assert json.loads((folder / LOCK_NAME).read_bytes())["token"] != "another"


def test_a_passing_failure_claims_nothing(folder: StoragePath, monkeypatch: pytest.MonkeyPatch):
    """It says nothing of what the store knows: the weaker way, to write and to read again, is not tried."""
    refusing(monkeypatch, OSError(errno.EBUSY, "SlowDown"))
    with fails("network", "memory://", "SlowDown"), remote_lock(folder):
        pass
    assert not (folder / LOCK_NAME).exists()


def test_names_are_no_patterns(folder: StoragePath):
    for name in ("a.jpg", "a*.jpg", "Up [2009].jpg"):
        (folder / name).write_bytes(name.encode())
    assert dict(read_present(folder, ["a*.jpg", "Up [2009].jpg", "absent"])) == {
        name: name.encode() for name in ("a*.jpg", "Up [2009].jpg")
    }
    remove_file(folder / "a*.jpg")
    assert names_in(folder) == {"a.jpg", "Up [2009].jpg"}
    remove_file(folder / "Up [2009].jpg")
    remove_file(folder / "Up [2009].jpg")  # not there any more
    assert names_in(folder) == {"a.jpg"}
    with fails("url-refused", folder / "set*"), remote_lock(folder / "set*"):
        pass


def test_a_file_that_cannot_be_read_is_not_taken_for_absent(folder: StoragePath, monkeypatch: pytest.MonkeyPatch):
    (folder / "a").write_bytes(b"a")

    def cat_file(*_: Any, **__: Any) -> bytes:
        raise OSError(errno.EBUSY, "SlowDown")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(OSError, match="SlowDown"):
        list(read_present(folder, ["a"]))
