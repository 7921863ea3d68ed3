"""What a test says of an expected error: its code and the facts in its line, not its wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shards.errors import Code, UserError


@contextmanager
def fails(code: Code, *facts: object) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """The block raises a UserError of this code, in one line that has all facts: names, paths, numbers."""
    with pytest.raises(UserError) as caught:
        yield caught
    line = str(caught.value)
    assert caught.value.code == code, f"{caught.value.code}: {line}"
    assert [str(fact) for fact in facts if str(fact) not in line] == [], line
    assert "\n" not in line
