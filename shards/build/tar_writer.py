"""webdataset's TarWriter without the rest of webdataset, whose package imports torch.

Preprocessing runs a process per core; torch would cost each of them seconds and hundreds of megabytes for nothing.
The writer's module needs only its neighbours, so it is loaded under a package name of ours, past ``__init__``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

_ALIAS = "shards._webdataset"


def tar_writer() -> Any:
    """The class ``webdataset.TarWriter``."""
    if _ALIAS not in sys.modules:
        found = importlib.util.find_spec("webdataset")  # finds, does not import
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError("webdataset is not installed", name="webdataset")
        package = types.ModuleType(_ALIAS)
        package.__path__ = list(found.submodule_search_locations)
        sys.modules[_ALIAS] = package
    return importlib.import_module(f"{_ALIAS}.writer").TarWriter
