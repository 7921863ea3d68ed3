"""The ``posters`` command: its subcommands, their options, and its error handling."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Return ``run`` for start scripts of an earlier version, which contain `from toolkit.cli import run`."""
    if name == "run":
        from toolkit.cli.main import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
