"""webdataset's TarWriter without the rest of webdataset, whose package imports torch.

Preprocessing runs a process per core; torch would cost each of them seconds and hundreds of megabytes for nothing.
The writer's module needs only its neighbours, so it is loaded under a package name of ours, past ``__init__``.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_ALIAS = "shards._webdataset"


def tar_writer() -> Any:
    """The class ``webdataset.TarWriter``."""
    if _ALIAS not in sys.modules:
        if (found := find_spec("webdataset")) is None:  # finds, does not import
            raise ModuleNotFoundError("webdataset is not installed", name="webdataset")
        package = sys.modules[_ALIAS] = types.ModuleType(_ALIAS)
        package.__path__ = list(found.submodule_search_locations or ())
    return import_module(f"{_ALIAS}.writer").TarWriter
