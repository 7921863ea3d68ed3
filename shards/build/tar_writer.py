"""Load webdataset's TarWriter without webdataset's ``__init__``, which imports torch.

Preprocessing runs a process per core; torch would cost each process seconds and hundreds of megabytes. The writer's
module imports only modules of its own package, so it is loaded under another package name, without ``__init__``.
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
