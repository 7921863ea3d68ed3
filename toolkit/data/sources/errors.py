"""What is said of bytes that no decoder accepts."""

from __future__ import annotations


class Undecodable(Exception):
    """An image that neither decoder accepts. The message is one line."""
