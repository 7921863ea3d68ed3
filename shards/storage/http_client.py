"""HTTP client for ``http://`` and ``https://`` paths. It limits redirects, response sizes and waiting times.

fsspec's HTTP file system uses this client instead of an aiohttp session (option ``get_client``). No server is trusted:

- At most MAX_REDIRECTS redirects are followed. A redirect must lead to http or https, but not from https to http.
- A public server must not redirect to this machine or its network. The addresses of the connections are checked.
- The user's password, query, cookies and most headers are sent only to the server that the user named.
- The client limits the size and the total time of a response body. It stops a body that arrives too slowly.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Generator
from ipaddress import ip_address
from typing import Any

import aiohttp
from aiohttp.abc import ResolveResult
from yarl import URL

from shards.errors import without_secrets
from shards.storage.address_policy import PUBLIC, PolicyResolver, PrivateAddress, kind_of, literal_ip, reachable_from
from shards.storage.limits import MIN_REQUEST_SECONDS, TooMuch

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
#: Default limit for the size of a response body in bytes.
MAX_ANSWER_BYTES = 1 << 30
#: Default time limit in seconds until a response begins. The rate of a body is also measured over this time.
ANSWER_SECONDS = 90.0
#: Lowest average rate of a body in bytes per second.
RATE = 1024

#: Headers that may be sent to every server.
_HARMLESS = ("range", "accept", "accept-encoding", "user-agent")
#: Options that are sent only to the server that the user named.
_SECRET = ("auth", "cookies", "params")


class Refused(PermissionError):
    """A forbidden redirect."""


class TooSlow(OSError):
    """A response body arrives more slowly than the lowest accepted rate, or takes longer than the allowed time."""


async def open_client(**options: Any) -> HttpClient:
    """Return a client for fsspec. ``options`` are options of aiohttp.ClientSession."""
    return HttpClient(**options)


class HttpClient:
    """HTTP client for fsspec. ``get`` and ``head`` work like the methods of an aiohttp session."""

    def __init__(self, **options: Any) -> None:
        # An aiohttp session would send these options to every target of a redirect.
        self._own: dict[str, Any] = {key: options.pop(key) for key in ("headers", "auth", "cookies") if key in options}
        self._options = options
        self._sessions: dict[frozenset[str], aiohttp.ClientSession] = {}
        self._kinds: dict[str, set[str]] = {}

    def get(self, url: URL | str, **request: Any) -> _PendingResponse:
        return _PendingResponse(self._follow("GET", url, **request))

    def head(self, url: URL | str, **request: Any) -> _PendingResponse:
        return _PendingResponse(self._follow("HEAD", url, **request))

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def _follow(
        self,
        method: str,
        asked: URL | str,
        *,
        query: str = "",
        most: int = MAX_ANSWER_BYTES,
        seconds: float = ANSWER_SECONDS,
        ends: float = float("inf"),
        allow_redirects: bool = True,
        **request: Any,
    ) -> aiohttp.ClientResponse:
        """Follow redirects and return the last response.

        query: query string of the user's URL. most: largest body in bytes. seconds: time limit until the response
        begins, and period over which the rate of the body is measured. ends: deadline of the body by time.monotonic.
        """
        given = [options.get("headers") or {} for options in (self._own, request)]
        own: dict[str, Any] = {k: value for k, value in {**self._own, **request}.items() if value is not None}
        own["headers"] = {"Accept-Encoding": "identity", **given[0], **given[1]}  # our files are already compressed
        url = URL(f"{URL(asked)}?{query}", encoded=True) if query else URL(asked)
        seconds, first, sources = max(seconds, MIN_REQUEST_SECONDS), url, set[str]()
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send(method, url, sources, seconds, own)
            location = response.headers.get("Location")
            if response.status not in REDIRECTS or location is None or not allow_redirects:
                body = _Body(response, most, seconds, ends)
                # Status 200 means that the server ignores the range and sends the whole file. The size is checked.
                from_start = own["headers"].get("Range", "bytes=0-").startswith("bytes=0-")
                body.is_whole = response.status == 200 and not from_start
                response.content = body  # type: ignore[assignment]
                return response
            response.release()
            sources |= self._kinds_of(url)
            url = _target(url, location)
            if not _same_server(first, url):
                own["headers"] = {k: text for k, text in own["headers"].items() if k.lower() in _HARMLESS}
                own = {name: value for name, value in own.items() if name not in _SECRET}
        raise Refused(f"it redirects more than {MAX_REDIRECTS} times")

    async def _send(
        self, method: str, url: URL, sources: set[str], seconds: float, request: dict[str, Any]
    ) -> aiohttp.ClientResponse:
        allowed = reachable_from(sources)
        literal = literal_ip(url.raw_host or "")  # numeric addresses do not pass through the resolver
        if literal is not None and kind_of(literal) not in allowed:
            raise _refused(url, str(literal))
        try:
            asked = self._session(allowed).request(method, url, allow_redirects=False, **request)
            return await asyncio.wait_for(asked, seconds)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddress):
                raise _refused(url, str(error.os_error)) from None
            raise

    def _session(self, allowed: frozenset[str]) -> aiohttp.ClientSession:
        """Return the session for the kinds of addresses in ``allowed``. Two sessions do not share connections."""
        if allowed not in self._sessions:
            options = dict(self._options)
            # If the user has set a proxy, the proxy connects to the servers, and its own address is not checked.
            if not any(map(options.get, ("trust_env", "proxy", "connector"))):
                options["connector"] = aiohttp.TCPConnector(resolver=_Resolver(allowed, self._kinds))
            self._sessions[allowed] = aiohttp.ClientSession(**options)
        return self._sessions[allowed]

    def _kinds_of(self, url: URL) -> set[str]:
        host = url.raw_host or ""
        literal = literal_ip(host)
        # If a name was not resolved here, a proxy has resolved it. Servers behind a proxy count as public.
        return {kind_of(literal)} if literal is not None else self._kinds.get(host, {PUBLIC})


class _Resolver(PolicyResolver):
    """Name resolver that returns only addresses of allowed kinds. It records which kinds of addresses each name has."""

    def __init__(self, allowed: frozenset[str], kinds: dict[str, set[str]]) -> None:
        super().__init__(lambda address: kind_of(address) in allowed)
        self._kinds = kinds

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses of a host. After a public address, only public addresses are allowed."""
        found = await super().resolve(host, port, family)
        known = self._kinds.setdefault(host, set())
        if PUBLIC in known:
            before, found = found, [one for one in found if kind_of(ip_address(one["host"])) == PUBLIC]
            if before and not found:
                raise PrivateAddress(f"{host} was public and is now {before[0]['host']}")
        known.update(kind_of(ip_address(one["host"])) for one in found)
        return found


class _Body:
    """Body of a response, with limits of size and time. Other attributes come from the stream of aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse, most: int, seconds: float, ends: float) -> None:
        self._stream = response.content
        self._most, self._seconds, self._ends = most, seconds, ends
        self._got = 0
        self.is_whole = False
        self._silent = response.status >= 400 or response.method == "HEAD"
        length = 0 if self._silent else response.content_length or 0
        if length > most:
            response.close()
            raise TooMuch(f"it has {length} bytes, but at most {most} are expected")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def read(self, wanted: int = -1) -> bytes:
        """Read ``wanted`` bytes, or all remaining bytes if ``wanted`` is -1. Returns b"" for an error response."""
        if self._silent:
            return b""
        blocks: list[bytes] = []
        while True:
            before = self._got
            now = time.monotonic()
            try:
                await asyncio.wait_for(self._fill(blocks, wanted), max(min(self._seconds, self._ends - now), 0.0))
                if self.is_whole and self._got != self._most:
                    size = f"the file has {self._got} bytes instead of {self._most}"
                    raise OSError(f"the server does not support ranges, and {size}")
                return b"".join(blocks)
            except aiohttp.ServerTimeoutError:
                raise
            except asyncio.TimeoutError:
                if self._got - before < RATE * self._seconds or time.monotonic() >= self._ends:
                    seconds = time.monotonic() - now
                    raise TooSlow(f"only {self._got - before} bytes arrived in {seconds:.0f} s") from None

    async def _fill(self, blocks: list[bytes], wanted: int) -> None:
        """Append to ``blocks`` until they have ``wanted`` bytes or the body ends. A cancelled call can be repeated."""
        left = wanted - sum(map(len, blocks)) if wanted >= 0 else -1
        while left:
            block = await (self._stream.readany() if left < 0 else self._stream.read(left))
            if not block:
                return
            blocks.append(block)
            self._got += len(block)
            if self._got > self._most:
                raise TooMuch(f"it has more than the expected {self._most} bytes")
            left = left - len(block) if left > 0 else left


class _PendingResponse:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, None, aiohttp.ClientResponse]:
        answer: Generator[Any, None, aiohttp.ClientResponse] = self._answer.__await__()
        return answer

    async def __aenter__(self) -> aiohttp.ClientResponse:
        self._response: aiohttp.ClientResponse = await self._answer
        return self._response

    async def __aexit__(self, *error: object) -> None:
        self._response.release()


def _target(url: URL, location: str) -> URL:
    """Return the target of a redirect. Raises Refused if it is not http(s), or if an https URL redirects to http."""
    try:
        target = url.join(URL(location)).with_fragment(None)
        target = target.with_user(None) if target.raw_host else target
    except ValueError:
        raise Refused("it redirects to an invalid URL") from None
    if target.scheme not in ("http", "https") or not target.raw_host:
        raise Refused(f"it redirects to {target.scheme}:, not to http:// or https://")
    if url.scheme == "https" and target.scheme == "http":
        raise Refused(f"it redirects from https to {without_secrets(str(target))}")
    return target


def _same_server(first: URL, other: URL) -> bool:
    """Return whether two URLs have the same origin, or the same host and the default ports (http and https)."""
    usual = first.is_default_port() and other.is_default_port()
    return first.origin() == other.origin() or (first.host == other.host and usual)


def _refused(url: URL, what: str) -> Refused:
    why = "an address of this machine or network; servers elsewhere may not redirect there"
    return Refused(f"it leads to {without_secrets(str(url))} ({what}), {why}")
