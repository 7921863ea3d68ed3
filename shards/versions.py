"""Versions of the libraries on which the bytes of a shard depend."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("poster-toolkit", "webdataset", "pillow", "pyarrow", "numpy")


def library_versions() -> dict[str, str]:
    """Versions on which a shard's bytes depend."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"
