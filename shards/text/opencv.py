"""Import OpenCV on first use. It is installed only with the optional dependencies ``poster-toolkit[clean]``."""

from __future__ import annotations

from functools import cache
from typing import Any

from shards.extras import require_extra


@cache
def cv2() -> Any:
    """Return cv2, limited to one thread because each core has a process. Raises UserError if cv2 is missing."""
    module = require_extra("clean", "text removal", "cv2")
    module.setNumThreads(1)
    return module
