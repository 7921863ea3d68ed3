"""Where files lie: a path of this machine, or a URL that fsspec knows (``s3://``, ``gs://``, ``hf://``, ``http://``).

``place`` turns what a user wrote into a ``pathlib.Path`` or its likeness for URLs, universal_pathlib's ``UPath``. Both
have ``/``, ``name``, ``exists``, ``glob``, ``open``, ``read_bytes``, ...; code that lists, reads and writes through
these works on either. A store's own settings (endpoint, keys, timeouts) come from where fsspec takes them: its
configuration files and ``FSSPEC_*`` variables, or the client's own (``AWS_ENDPOINT_URL``, ``~/.aws``, ...).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from shards.errors import UserError, one_line

#: A local path or a URL. UPath is no Path by type, but has what is used of it here.
Place: TypeAlias = Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

#: Of HTTP, seconds: to wait for a connection, and for the next byte.
HTTP_TIMEOUT = (30.0, 60.0)

#: Which extra brings the client of a protocol.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


#: What clients of stores raise beside OSErrors: (module, class).
CLIENT_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("httpx", "HTTPError"),  # huggingface_hub's
    ("httpx2", "HTTPError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)


def is_url(text: str) -> bool:
    """Whether a text is a URL rather than a path.

    >>> is_url("s3://bucket/set"), is_url("data/set"), is_url("C:/set")
    (True, False, False)
    """
    return _URL.match(text) is not None


def is_remote(path: Place) -> bool:
    """Whether a place is anything but a path of this machine."""
    return not isinstance(path, Path)


def place(text: str | Place) -> Place:
    """The place that a text names. Raises UserError for a URL of an unknown kind or without its client."""
    if not isinstance(text, str):
        return text
    if not is_url(text):
        return Path(text)
    protocol = text.partition("://")[0].lower()
    if protocol in ("file", "local"):
        return Path(text.partition("://")[2])
    from upath import UPath  # only those who use URLs pay for it

    try:
        path = UPath(text, **_settings(protocol))
        _ = path.fs  # made on first use: a missing client shows here and not in the middle of the work
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        how = f"pip install -c constraints.txt -e '.[{extra}]'" if extra else "install the package it names"
        raise UserError(f"{protocol}:// needs another package: {how} ({one_line(error)})") from None
    except ValueError as error:
        raise UserError(f"{text} cannot be read: {one_line(error)}") from None
    return path  # an UPath, see Place


def _settings(protocol: str) -> dict[str, Any]:
    """What fsspec's own settings of a protocol would make wait too long, unless the user has set it."""
    import fsspec.config

    if protocol not in ("http", "https") or "client_kwargs" in fsspec.config.conf.get(protocol, {}):
        return {}
    import aiohttp

    connect, read = HTTP_TIMEOUT  # aiohttp's own bound is five minutes for a whole file, however large
    return {
        "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read)}
    }


def remote_errors() -> tuple[type[BaseException], ...]:
    """What reading or writing a remote place may raise for reasons that lie outside of this program.

    fsspec's file systems pass some of their clients' own errors on: aiohttp's and botocore's among them.
    """
    found: list[type[BaseException]] = [OSError, asyncio.TimeoutError]
    for module, name in CLIENT_ERRORS:
        with contextlib.suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


@contextlib.contextmanager
def told(what: str, path: Place) -> Iterator[None]:
    """Turn a remote place's errors into one line: ``what`` ("read the manifest") says what was tried.

    Local places keep their OSErrors, which callers know how to tell apart.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except remote_errors() as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"cannot {what} at {path}: {one_line(error)}; check the address, your credentials and the network"
        ) from None
