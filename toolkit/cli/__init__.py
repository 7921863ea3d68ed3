"""The ``posters`` command: its tree, the options of each command, and how errors end."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """``run`` for scripts that an installation of an earlier version left: `from toolkit.cli import run`."""
    if name == "run":
        from toolkit.cli.main import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
