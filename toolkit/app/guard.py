"""Checks of the requests to `posters app`, before gradio handles them, and quotas of uploads.

The page has no password, and any web page can make a browser send requests to 127.0.0.1. Therefore:

- The Host header must be an address or a known name of this server. This prevents DNS rebinding.
- A request that changes something must have the Origin of the page, or no Origin. curl sends no Origin.
- Only routes that the page and its API use are allowed. Other routes of gradio can store or fetch data.
- An upload must have a Content-Length within the quota of its client and the quota of all clients.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

from shards.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Maximum bytes of uploads in QUOTA_SECONDS, by one client and by all clients. Older uploads are deleted.
PER_CLIENT, IN_ALL, QUOTA_SECONDS = 500 << 20, 2 << 30, 3600.0
#: Bytes that an uploaded file takes in addition to its content, and a text that occurs once per file in an upload.
FILE_OVERHEAD, _FILE_MARK = 8192, b"filename"
#: Maximum bytes of a request that is not an upload.
MAX_REQUEST = 1 << 20
API = "/gradio_api/"
#: Prefixes of the routes below API that the page uses.
READ_ROUTES = (
    "info", "upload_progress", "queue/data", "heartbeat/", "file=", "startup-events", "theme.css", "app_id",
    "call/predict/",
)  # fmt: skip
WRITE_ROUTES = ("upload", "queue/join", "cancel", "reset", "call/predict")


class Guard:
    """ASGI middleware for the checks. ``host`` is the address of the server. ``root`` is the value of --root-path."""

    def __init__(self, app: Any, host: str, root: str = "") -> None:
        self.app = app
        public = urlsplit(root)
        self.root, self.public = public.path.rstrip("/"), public.netloc
        self.names = {"localhost", host.lower(), public.hostname or "localhost"}
        address = _address(host)
        self.anywhere = not (address.is_loopback if address else host.lower() == "localhost")
        if self.anywhere:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._ledger: list[tuple[float, str, int]] = []  # (time, client, bytes) of uploads
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse invalid requests, and pass all other requests to the app."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # the page does not use websockets
            return
        refused = self._refusal(scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, self._counted(scope, receive), send)
        else:
            await _answer(send, *refused)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return (status, reason) if a request is refused, or None if it is allowed."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._ours(host):
            return 403, "the page is not served under this name; for a proxy, start it with --root-path https://NAME/"
        path = scope["path"].removeprefix(self.root) if self.root else scope["path"]
        route = path[len(API) :].rstrip("/") if path.startswith(API) else None
        if scope["method"] in ("GET", "HEAD"):
            known = route is None or route.startswith(READ_ROUTES)
            return None if known else (404, "not used by this page")
        if scope["method"] != "POST" or route not in WRITE_ROUTES:
            return 405, "not used by this page"
        origin = headers.get("origin")
        if origin is not None and _server(origin) not in (host, self.public or host):
            return (
                403,
                "requests of other web pages are refused; for a proxy, start the page with --root-path https://NAME/",
            )
        return self._size_refusal(scope, headers, route)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap ``receive``: for each received file, add FILE_OVERHEAD bytes to the uploads of the client."""
        client, end = (scope.get("client") or ("",))[0], b""

        async def counted() -> MutableMapping[str, Any]:
            nonlocal end
            message = await receive()
            text = end + message.get("body", b"").lower()
            end = text[1 - len(_FILE_MARK) :]
            if files := text.count(_FILE_MARK):
                with self._lock:
                    self._ledger.append((time.monotonic(), client, files * FILE_OVERHEAD))
            return message

        return counted

    def _size_refusal(self, scope: Scope, headers: dict[str, str], route: str) -> tuple[int, str] | None:
        length = headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "a request needs a Content-Length"
        if route != "upload":
            return None if int(length) <= MAX_REQUEST else (413, "too large")
        client, now = (scope.get("client") or ("",))[0], time.monotonic()
        with self._lock:
            self._ledger = [entry for entry in self._ledger if now - entry[0] < QUOTA_SECONDS]
            own = sum(size for _, who, size in self._ledger if who == client)
            everyone = sum(size for _, _, size in self._ledger)
            if own + int(length) > PER_CLIENT or everyone + int(length) > IN_ALL:
                return 413, (
                    f"too much at a time: the limits per hour are {PER_CLIENT >> 20} MB for a visitor and "
                    f"{IN_ALL >> 20} MB for all visitors; upload fewer or smaller files, or wait"
                )
            self._ledger.append((now, client, int(length)))
        return None

    def _ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        address = _address(name)
        return address is not None and (self.anywhere or address.is_loopback)


def _server(origin: str) -> str:
    """Return host and port of an Origin, or an empty string if it is invalid."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def check_root(root: str) -> str:
    """Return ``--root-path`` without a slash at its end. Raises UserError if it is neither a path nor an address."""
    parts = urlsplit(root)
    whole = parts.scheme in ("http", "https") and parts.hostname
    if root and not whole and (parts.scheme or parts.netloc or not root.startswith("/")):
        raise UserError(
            "option-value",
            f"--root-path must be a path such as /posters, or the whole address at the proxy "
            f"such as https://example.org/posters, not {root!r}",
        )
    return root.rstrip("/")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


async def _answer(send: Send, status: int, reason: str) -> None:
    body = f"{reason}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    # The body of a refused upload is not read, so the connection cannot be reused.
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
