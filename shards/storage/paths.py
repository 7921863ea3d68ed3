"""Paths of files: local paths, and URLs that fsspec supports (``s3://``, ``gs://``, ``hf://``, ``http://``, ...).

``storage_path`` converts a local path to a ``pathlib.Path`` and a URL to a ``UPath`` of universal_pathlib. Both classes
have ``/``, ``name``, ``exists``, ``glob`` and ``open``, so the same code works with both. The settings of a store
(endpoint, keys, timeouts) come from fsspec's configuration files, from ``FSSPEC_*`` variables or from the settings of
the store's client (``AWS_ENDPOINT_URL``, ``~/.aws``, ...).

The text of a path never contains secrets. The user, password and query of a URL become options of its file system.
Tasks on other machines receive these options. No message and no file shows the options.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from shards.errors import UserError, one_line
from shards.extras import install

#: A local path or a URL. UPath is not a subclass of Path, but it has all methods that this project uses.
StoragePath: TypeAlias = Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: Timeouts of HTTP in seconds: to open a connection, and to wait for the next byte.
HTTP_TIMEOUT = (30.0, 60.0)
#: Name of the extra (optional dependencies) that installs the client of each protocol.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
#: Module and name of each exception of a store client that is not an OSError.
CLIENT_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("httpx", "HTTPError"),  # raised by huggingface_hub
    ("httpx2", "HTTPError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)


def is_url(text: str) -> bool:
    """Return whether a text is a URL and not a local path.

    >>> is_url("s3://bucket/set"), is_url("data/set"), is_url("C:/set")
    (True, False, False)
    """
    return _URL.match(text) is not None


def is_remote(path: StoragePath) -> bool:
    """Return whether a path is a URL and not a local path."""
    return not isinstance(path, Path)


def is_path(value: object) -> bool:
    """Return whether a value of a user is a path or a URL: a text or a path object."""
    # The path object of a URL is not an os.PathLike, because open() cannot open its files.
    return isinstance(value, (str, os.PathLike)) or hasattr(value, "joinpath")


def storage_path(text: str | StoragePath) -> StoragePath:
    """Parse a path or a URL. Raises UserError if the URL's protocol is unknown or its client is not installed."""
    if not isinstance(text, str):
        return text
    protocol, rest = text.partition("://")[::2] if is_url(text) else ("file", text)
    protocol = protocol.lower()
    if protocol in ("file", "local"):
        return Path(rest)
    parts = [part for part in rest.split("/") if part]
    if protocol == "hf" and len(parts) < 2 + (parts[:1] in (["datasets"], ["spaces"])):
        raise UserError("url-refused", f"{text} cannot be read: write hf://datasets/USER/NAME or hf://USER/NAME")
    if protocol in ("s3", "s3a", "gs", "gcs") and not parts:
        raise UserError("url-refused", f"{text} cannot be read: write {protocol}://BUCKET/SET")
    from upath import UPath  # a slow import, which only URLs need

    try:
        shown, options = _http(text, protocol) if protocol in ("http", "https") else (text, {})
        path = UPath(shown, **options)
        _ = path.fs  # imports the client: a missing package must be an error now, not in the middle of the work
    except ImportError as error:
        how = install(EXTRAS[protocol]) if protocol in EXTRAS else "install that package"
        what = f"{protocol}:// needs a package that is not installed ({one_line(error)})"
        raise UserError("extra-missing", f"{what}: {how}") from None
    except ValueError as error:
        raise UserError("url-refused", f"{text} cannot be read: {one_line(error)}") from None
    except remote_errors() as error:  # FTP's client connects when it is created
        remedy = "check the address and the network"
        raise UserError("network", f"{text} cannot be reached: {one_line(error)}; {remedy}") from None
    user = urlsplit(str(path)).netloc.rpartition("@")[0]
    if ":" in user and protocol != "github":  # GitHub's OWNER:REPOSITORY@ only looks like a password
        why = "put it into the configuration or the environment variables of the store's client"
        raise UserError("url-refused", f"{protocol}:// URLs cannot contain a password: {why}")
    return path  # a UPath, see StoragePath


def _http(text: str, protocol: str) -> tuple[str, dict[str, Any]]:
    """Split a URL into its text without secrets and fsspec options that contain the secrets.

    The options also name our HTTP client. They set timeouts if the user's configuration has no ``client_kwargs``.
    Raises UserError if the URL is malformed.
    """
    import aiohttp
    import fsspec.config

    from shards.storage.http_client import open_client

    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:  # the message of this error could show a part of the password
        why = "its port is not a number or its host is malformed (write / : @ of a password as %2F %3A %40)"
        raise UserError("url-refused", f"a URL cannot be read: {why}") from None
    if not url.hostname:
        raise UserError("url-refused", "a URL cannot be read: it has no host")
    users = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {"get_client": open_client, **({"query": url.query} if url.query else {})}
    if "client_kwargs" not in users:
        connect, read = HTTP_TIMEOUT  # aiohttp's default is five minutes for a file of any size
        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(None, sock_connect=connect, sock_read=read)}
    user, at, host = url.netloc.rpartition("@")
    if at:
        pair = base64.b64encode(unquote(user).encode() if ":" in user else f"{unquote(user)}:".encode()).decode()
        options["headers"] = {**users.get("headers", {}), "Authorization": f"Basic {pair}"}
    return url._replace(netloc=host, query="", fragment="").geturl(), options


def remote_errors() -> tuple[type[BaseException], ...]:
    """Return the exception classes of failed remote reads and writes, including those of installed store clients."""
    found: list[type[BaseException]] = [OSError, asyncio.TimeoutError]
    for module, name in CLIENT_ERRORS:
        with contextlib.suppress(ImportError):
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


@contextlib.contextmanager
def as_user_error(what: str, path: StoragePath) -> Iterator[None]:
    """Turn errors at a remote path, except FileNotFoundError, into a UserError that names the operation ``what``."""
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
