"""Out of memory, of the device or of the machine, as one line that says what would fit.

Torch's classes and texts differ by device: CUDA has OutOfMemoryError, the CPU's allocator a RuntimeError with a text of
its own, and what Python and numpy lack is a MemoryError.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from shards.errors import UserError

_TEXTS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of whichever device, did not suffice."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


@contextlib.contextmanager
def explain_out_of_memory(line: Callable[[], str]) -> Iterator[None]:
    """Turn out of memory into a UserError: ``line`` says what did not fit, and what to do about it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        asked = _ASKED.search(str(error))
        amount = f" (tried to allocate {asked.group(1)})" if asked else ""
        raise UserError("out-of-memory", f"out of memory{amount}: {line()}") from None
