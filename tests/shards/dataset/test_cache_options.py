"""A file that a manifest names becomes a name in the cache: only a digest, a plain ending and a size do."""

from __future__ import annotations

from pathlib import Path

import pytest
from failing import fails

from shards.dataset.cache_options import RemoteFile
from shards.storage.paths import storage_path


@pytest.mark.parametrize(
    "sha256", ["", "0" * 63, "0" * 65, "../" + "0" * 61, "/" + "0" * 63, "G" * 64, "0" * 64 + "\n", 7]
)
def test_only_a_digest_names_a_file(sha256: object) -> None:
    with fails("set-damaged", "sha256"):
        RemoteFile(storage_path("http://127.0.0.1:1/set/train-00000.tar"), 1, sha256)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["x.partial", "x.failed", "x", ".bashrc", "x.", "x.a b", "x.\u00e9", "x.tar\n", "..", "x.t\x00r"]
)
def test_only_a_plain_ending_names_a_file(name: str) -> None:
    with fails("set-damaged", repr(Path(name).name)):
        RemoteFile(Path("set") / name, 1, "0" * 64)
    assert RemoteFile(Path("set") / "train-1.5-00000.tar", 1, "0" * 64).name == "0" * 64 + ".tar"


@pytest.mark.parametrize("size", [-1, 1 << 60, 1.5, None, "1"])
def test_only_a_size_is_fetched(size: object) -> None:
    with fails("set-damaged", "x.tar", repr(str(size))):
        RemoteFile(Path("x.tar"), size, "0" * 64)  # type: ignore[arg-type]
