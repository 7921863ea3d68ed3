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
StoragePath: TypeAlias = Path

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


def is_remote(path: StoragePath) -> bool:
    """Whether a place is anything but a path of this machine."""
    return not isinstance(path, Path)


def storage_path(text: str | StoragePath) -> StoragePath:
    """The place that a text names. Raises UserError for a URL of an unknown kind or without its client."""
    if not isinstance(text, str):
        return text
    protocol, rest = text.partition("://")[::2] if is_url(text) else ("file", text)
    protocol = protocol.lower()
    if protocol in ("file", "local"):
        return Path(rest)
    from upath import UPath  # only those who use URLs pay for it

    try:
        shown, options = _http(text, protocol) if protocol in ("http", "https") else (text, {})
        path = UPath(shown, **options)
        _ = path.fs  # made on first use: a missing client shows here and not in the middle of the work
    except ImportError as error:
        how = install(EXTRAS[protocol]) if protocol in EXTRAS else "install the package it names"
        raise UserError("extra-missing", f"{protocol}:// needs another package: {how} ({one_line(error)})") from None
    except ValueError as error:
        raise UserError("url-refused", f"{text} cannot be read: {one_line(error)}") from None
    except remote_errors() as error:  # FTP's client connects at once
        remedy = "check the address and the network"
        raise UserError("network", f"{text} cannot be reached: {one_line(error)}; {remedy}") from None
    user = urlsplit(str(path)).netloc.rpartition("@")[0]
    if ":" in user and protocol != "github":  # whose OWNER:REPOSITORY@ looks like a password
        why = "give it where the store's client takes it, in its configuration or its environment variables"
        raise UserError("url-refused", f"{protocol}:// URLs take no password: {why}")
    return path  # an UPath, see Place


def _http(text: str, protocol: str) -> tuple[str, dict[str, Any]]:
    """A URL that may be shown, and the options that stand for what is secret in it (fsspec itself does so for FTP).

    They say whom fsspec asks, and, unless the user has set it, how long it waits. Raises UserError.
    """
    import aiohttp
    import fsspec.config

    from shards.storage.http_client import open_client

    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:  # whose message would show what it takes for a port, such as half a password
        why = "its port is not a number or its host is malformed (write / : @ of a password as %2F %3A %40)"
        raise UserError("url-refused", f"a URL cannot be read: {why}") from None
    if not url.hostname:
        raise UserError("url-refused", "a URL cannot be read: it names no host")
    users = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {"get_client": open_client, **({"query": url.query} if url.query else {})}
    if "client_kwargs" not in users:
        connect, read = HTTP_TIMEOUT  # aiohttp's own bound is five minutes for a whole file, however large
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(None, sock_connect=connect, sock_read=read)}
    user, at, host = url.netloc.rpartition("@")
    if at:
        pair = base64.b64encode(unquote(user).encode() if ":" in user else f"{unquote(user)}:".encode()).decode()
        options["headers"] = {**users.get("headers", {}), "Authorization": f"Basic {pair}"}
    return url._replace(netloc=host, query="", fragment="").geturl(), options


def remote_errors() -> tuple[type[BaseException], ...]:
    """What reading or writing a remote place may raise for outside reasons, clients' own errors among them."""
    found: list[type[BaseException]] = [OSError, asyncio.TimeoutError]
    for module, name in CLIENT_ERRORS:
        with contextlib.suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


@contextlib.contextmanager
def as_user_error(what: str, path: StoragePath) -> Iterator[None]:
    """Turn a remote place's errors into one line that says ``what`` was tried; local ones keep their OSErrors."""
    if not is_remote(path):
        yield
        return
    try:
        yield
    except remote_errors() as error:
        if isinstance(error, FileNotFoundError):
            raise
        remedy = "check the address, your credentials and the network"
        raise UserError("network", f"cannot {what} at {path}: {one_line(error)}; {remedy}") from None
