"""Load the class TarWriter without the ``__init__`` of the package webdataset, which imports torch.

Preprocessing runs one process per core, and torch costs each process seconds and hundreds of megabytes. TarWriter does
not need torch. So its module is loaded under another package name, and the ``__init__`` of webdataset does not run.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_ALIAS = "shards._webdataset"


def tar_writer() -> Any:
    """Return the class ``webdataset.TarWriter``."""
    if _ALIAS not in sys.modules:
        if (found := find_spec("webdataset")) is None:  # find_spec does not import the package
            raise ModuleNotFoundError("webdataset is not installed", name="webdataset")
        package = sys.modules[_ALIAS] = types.ModuleType(_ALIAS)
        package.__path__ = list(found.submodule_search_locations or ())
    return import_module(f"{_ALIAS}.writer").TarWriter
