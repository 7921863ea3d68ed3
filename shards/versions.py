"""Versions of the libraries that influence the bytes of a shard."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("poster-toolkit", "webdataset", "pillow", "pyarrow", "numpy")


def library_versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python, LIBRARIES and ``others``. The version of a missing library is "not installed"."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *others):
        try:
            found.setdefault(name, version(name))
        except PackageNotFoundError:  # poster-toolkit itself is not installed if it runs from a source tree
            found.setdefault(name, "not installed")
    return found
