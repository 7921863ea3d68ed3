"""Turn out-of-memory errors of the device or the machine into one line with a remedy.

The errors differ: CUDA raises OutOfMemoryError, torch's CPU allocator a RuntimeError, Python and numpy a MemoryError.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from shards.errors import UserError

_TEXTS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means out of memory, on any device."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


@contextlib.contextmanager
def explain_out_of_memory(line: Callable[[], str]) -> Iterator[None]:
    """Turn out-of-memory errors into a UserError; ``line()`` returns what did not fit, and the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = _ASKED.search(str(error))
        amount = f" (tried to allocate {asked.group(1)})" if asked else ""
        raise UserError("out-of-memory", f"out of memory{amount}: {line()}") from None
