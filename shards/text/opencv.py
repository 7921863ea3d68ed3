"""Import OpenCV on first use, since only the extra ``clean`` installs it."""

from __future__ import annotations

from functools import cache
from typing import Any

from shards.extras import require_extra


@cache
def cv2() -> Any:
    """Return the module cv2 with one thread, because tasks run in processes. Raises UserError if cv2 is missing."""
    module = require_extra("clean", "text removal", "cv2")
    module.setNumThreads(1)
    return module
