"""Turn docstrings and help texts into Markdown."""

from __future__ import annotations

import re


def plain(text: str) -> str:
    """Return a docstring or help text as one line of Markdown that fits into a cell of a table."""
    text = " ".join(text.replace("``", "`").split())
    parts = text.split("`")  # every second part is code
    parts[::2] = [re.sub(r"([*<\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts).replace("|", r"\|")
