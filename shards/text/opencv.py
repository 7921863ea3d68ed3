"""OpenCV, when it is needed: it comes with the extra ``clean``."""

from __future__ import annotations

from functools import cache
from typing import Any

from shards.errors import UserError


@cache
def cv2() -> Any:
    """The module, told to use one thread: tasks are spread over processes. Raises UserError if it is not installed."""
    try:
        import cv2 as module
    except ImportError:
        raise UserError("text removal needs opencv-python-headless: pip install -e '.[clean]'") from None
    module.setNumThreads(1)
    return module
