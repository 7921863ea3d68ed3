"""Where files lie: a path of this machine, or a URL that fsspec knows (``s3://``, ``gs://``, ``hf://``, ``http://``).

``place`` turns what a user wrote into a ``pathlib.Path`` or its likeness for URLs, universal_pathlib's ``UPath``. Both
have ``/``, ``name``, ``exists``, ``glob``, ``open``, ``read_bytes``, ...; code that lists, reads and writes through
these works on either. A store's own settings (endpoint, keys, timeouts) come from where fsspec takes them: its
configuration files and ``FSSPEC_*`` variables, or the client's own (``AWS_ENDPOINT_URL``, ``~/.aws``, ...).

A place's text never holds a password: what is secret in a URL (its user, password and query) goes to the options with
which the store is asked. So it is asked with them, also by tasks on other machines, and no message or file shows them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from shards.errors import UserError, one_line
from shards.extras import install

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
        shown, secrets = _parted(text, protocol)
        path = UPath(shown, **_settings(protocol), **secrets)
        _ = path.fs  # made on first use: a missing client shows here and not in the middle of the work
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        how = install(extra) if extra else "install the package it names"
        raise UserError(f"{protocol}:// needs another package: {how} ({one_line(error)})") from None
    except ValueError as error:
        raise UserError(f"{text} cannot be read: {one_line(error)}") from None
    except remote_errors() as error:  # FTP's client connects at once
        raise UserError(f"{text} cannot be reached: {one_line(error)}; check the address and the network") from None
    if _has_password(str(path)):
        raise UserError(
            f"{protocol}:// URLs take no password: give it where the store's client takes it, in its configuration or "
            f"its environment variables"
        )
    return path  # an UPath, see Place


def _parted(text: str, protocol: str) -> tuple[str, dict[str, Any]]:
    """A URL that may be shown, and the options that stand for what is secret in it. fsspec itself does so for FTP."""
    if protocol not in ("http", "https"):
        return text, {}
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:  # whose message would show what it takes for a port, such as half a password
        raise UserError(
            "a URL cannot be read: its port is not a number or its host is malformed (write / : @ of a password as "
            "%2F %3A %40)"
        ) from None
    if not url.hostname:
        raise UserError("a URL cannot be read: it names no host")
    secrets: dict[str, Any] = {"query": url.query} if url.query else {}
    user, at, host = url.netloc.rpartition("@")
    if at:
        import fsspec.config

        pair = base64.b64encode(unquote(user).encode() if ":" in user else f"{unquote(user)}:".encode()).decode()
        others = fsspec.config.conf.get(protocol, {}).get("headers", {})
        secrets["headers"] = {**others, "Authorization": f"Basic {pair}"}
    return url._replace(netloc=host, query="", fragment="").geturl(), secrets


def _has_password(text: str) -> bool:
    """Whether a URL has a user with a password. GitHub's ``OWNER:REPOSITORY@`` looks so."""
    user, at, _ = urlsplit(text).netloc.rpartition("@")
    return bool(at) and ":" in user and not text.startswith("github:")


def _settings(protocol: str) -> dict[str, Any]:
    """Whom fsspec asks for HTTP, and what its own settings would make wait too long, unless the user has set it."""
    if protocol not in ("http", "https"):
        return {}
    import fsspec.config

    from shards.storage.http_client import open_client

    if "client_kwargs" in fsspec.config.conf.get(protocol, {}):
        return {"get_client": open_client}
    import aiohttp

    connect, read = HTTP_TIMEOUT  # aiohttp's own bound is five minutes for a whole file, however large
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read)
    return {"get_client": open_client, "client_kwargs": {"timeout": timeout}}


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
