"""The error for an image that cannot be decoded."""

from __future__ import annotations


class Undecodable(Exception):
    """An image that cannot be decoded. The message gives the reason in one line."""
