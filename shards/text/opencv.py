"""OpenCV, when it is needed: it comes with the extra ``clean``."""

from __future__ import annotations

from functools import cache
from typing import Any

from shards.extras import require_extra


@cache
def cv2() -> Any:
    """The module, told to use one thread: tasks are spread over processes. Raises UserError if it is not installed."""
    module = require_extra("clean", "text removal", "cv2")
    module.setNumThreads(1)
    return module
