"""Turn out-of-memory errors of a GPU or a CPU into one line with a remedy.

CUDA raises OutOfMemoryError, torch's CPU allocator raises RuntimeError, and Python and numpy raise MemoryError.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from shards.errors import UserError

_TEXTS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_AMOUNT = re.compile(r"(?:tried to|unable to) allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


@contextlib.contextmanager
def explain_out_of_memory(line: Callable[[], str]) -> Iterator[None]:
    """Raise UserError in place of an out-of-memory error. ``line()`` returns what did not fit, and the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = _AMOUNT.search(str(error))
        amount = f" (tried to allocate {found.group(1)})" if found else ""
        raise UserError("out-of-memory", f"out of memory{amount}: {line()}") from None
