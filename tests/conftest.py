"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

# Whoever starts a shell job in the background has its Ctrl-C ignored, and every process below inherits that: the tests
# that press Ctrl-C in a child would then wait for ever. A handler of our own is reset to the default in children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """A running S3 server, the one that this process's environment names."""
    from remote_tools import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(s3_address: str) -> str:
    """``s3://NAME`` of an empty bucket of a test's own."""
    from remote_tools import new_bucket

    return new_bucket()
