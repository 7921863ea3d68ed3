"""Download one link, with retries, redirects and limits. The result is the bytes, or the reason of the failure."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import os
import random
import ssl
import time
from collections import defaultdict
from pathlib import Path

import aiohttp
from yarl import URL

from shards.errors import one_line, without_secrets
from shards.fetch.links import BadLink, parse_link
from shards.fetch.options import FetchOptions
from shards.inputs.rejections import Unusable
from shards.storage.address_policy import Policy, PolicyResolver, PrivateAddress, is_any, is_public, literal_ip

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
#: HTTP statuses that are temporary, like 5xx: request timeout, too early, too many requests.
PASSING = (408, 425, 429)
#: Error numbers that mean too few resources on this machine. The link is not the cause.
LOCAL_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
#: Longest pause between two tries, in seconds. A Retry-After of the server can be longer.
MAX_BACKOFF = 30.0


class Unfetched(Unusable):
    """A download that failed, with its reason."""

    def __init__(self, reason: str, detail: str, *, passing: bool = False, retry: bool = True) -> None:
        super().__init__(reason, detail)
        self.passing = passing  # the failure is temporary: another run may succeed
        self.retry = passing and retry  # another try in this run may succeed


def download_one(link: str, allow_private: bool = False) -> bytes:
    """Return the bytes of a link, with the default limits of `posters fetch`. Raises Unfetched after a failure.

    A thread must not have a running event loop when it calls this function.
    """
    options = FetchOptions(metadata=Path(), out=Path(), url_column="")  # the files of a whole run are not used
    allowed = is_any if allow_private else is_public

    async def download() -> bytes:
        async with open_session(options, allowed) as session:
            return await Downloader(session, options, allowed).fetch(link)

    return asyncio.run(download())


def open_session(options: FetchOptions, allowed: Policy) -> aiohttp.ClientSession:
    """Open the HTTP session of a run. The caller must close it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=PolicyResolver(allowed),
            limit=0,  # no limit here: the number of tasks and ``per_host`` limit the connections
            keepalive_timeout=5,  # idle connections to many hosts would use up the file descriptors
        ),
        timeout=aiohttp.ClientTimeout(total=options.timeout, sock_connect=options.connect_timeout),
        # Ignore the environment. A proxy would connect to addresses that the policy has not checked,
        # and passwords of a .netrc would be sent to any host that a link names.
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": options.user_agent,
            "Accept": "image/jpeg,image/png,image/*;q=0.8",
            "Accept-Encoding": "identity",  # images are already compressed
        },
    )


class Downloader:
    """Downloader of links. Any number of asyncio tasks can call ``fetch`` at the same time."""

    def __init__(self, session: aiohttp.ClientSession, options: FetchOptions, allowed: Policy) -> None:
        self._session, self._options, self._allowed = session, options, allowed
        # Redirects can lead links of many hosts to one host, so ``per_host`` applies to the host of each request.
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(options.per_host))
        self._not_before: dict[str, float] = {}

    async def fetch(self, link: str) -> bytes:
        """Return the link's bytes. Raises Unfetched after a permanent failure or the last try."""
        tries = 0
        while True:
            try:
                return await self._follow(link)
            except Unfetched as failure:
                if not failure.retry or tries == self._options.retries:
                    raise
            pause = min(MAX_BACKOFF, self._options.backoff * 2**tries)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # so that retries do not coincide
            tries += 1

    async def _follow(self, link: str) -> bytes:
        """Try a link once and follow its redirects. Each target is checked like a link in the CSV."""
        seen: set[URL] = set()
        while True:
            try:
                url = parse_link(link).with_fragment(None)
            except BadLink as bad:
                raise Unfetched("bad link", f"redirected to: {bad}" if seen else str(bad)) from None
            if url in seen:
                raise Unfetched("redirect loop", without_secrets(str(url))[:200])
            if len(seen) > MAX_REDIRECTS:
                raise Unfetched("too many redirects", f"more than {MAX_REDIRECTS}")
            seen.add(url)
            answer = await self._request(url)
            if isinstance(answer, bytes):
                return answer
            link = answer

    async def _request(self, url: URL) -> bytes | str:
        """Return the body, or the target of a redirect."""
        host = url.raw_host or ""
        literal = literal_ip(host)  # numeric addresses do not pass through the resolver
        if literal is not None and not self._allowed(literal):
            raise Unfetched("private address", f"{host} is {literal}" if host != str(literal) else host)
        async with self._slots[host]:
            await self._wait_for(host)
            try:
                async with self._session.get(url, allow_redirects=False) as response:
                    if response.status in REDIRECTS and "Location" in response.headers:
                        return str(url.join(URL(response.headers["Location"])))
                    self._check_status(response, host)
                    return await self._read(response)
            except asyncio.TimeoutError as error:
                connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
                seconds = self._options.connect_timeout if connecting else self._options.timeout
                what = "no connection" if connecting else "not complete"
                raise Unfetched("timeout", f"{what} in {seconds:g} s", passing=True) from None
            except (aiohttp.ClientError, ValueError) as error:  # ValueError: a Location that is not a URL
                raise _unfetched(error) from None

    async def _wait_for(self, host: str) -> None:
        while (seconds := self._not_before.get(host, 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def _check_status(self, response: aiohttp.ClientResponse, host: str) -> None:
        status = response.status
        if status == 200:
            return
        passing = status >= 500 or status in PASSING
        seconds = _seconds(response.headers.get("Retry-After", ""))
        # A try before Retry-After would fail. If Retry-After is over max_wait, only a later run tries again.
        retry = seconds is None or seconds <= self._options.max_wait
        if passing and retry and seconds is not None:
            self._not_before[host] = max(self._not_before.get(host, 0.0), time.monotonic() + seconds)
        raise Unfetched("http status", str(status), passing=passing, retry=retry)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        limit, body = self._options.max_bytes, bytearray()
        size = response.content_length or 0
        while size <= limit and (block := await response.content.readany()):
            body += block
            size = len(body)
        if size > limit:
            raise Unfetched("too large", f"over {limit} bytes")
        return bytes(body)


def _seconds(text: str) -> float | None:
    """Convert a Retry-After value (seconds or a date) to seconds from now. None if it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _unfetched(error: Exception) -> Unfetched:
    """Convert an exception of the HTTP client to an Unfetched, with a detail that is the same in every run."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return Unfetched("truncated", "the connection ended before the end of the file", passing=True)
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)):
        return Unfetched("no connection", "the certificate is not valid", passing=True, retry=False)
    if isinstance(error, aiohttp.ClientSSLError):
        return Unfetched("no connection", "the TLS handshake failed", passing=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, PrivateAddress):
            return Unfetched("private address", str(cause))
        if cause.errno in LOCAL_ERRORS:
            raise cause
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Unfetched("no connection", "the host is not known", passing=True)
        word = os.strerror(cause.errno) if cause.errno else "no address of the host accepts connections"
        if cause.errno is None and isinstance(cause, ssl.SSLError):
            word = "the TLS handshake failed"
        return Unfetched("no connection", word, passing=True)
    if isinstance(error, (aiohttp.InvalidURL, ValueError)):
        return Unfetched("bad link", one_line(error)[:200])
    if isinstance(error, aiohttp.ClientConnectionError):  # also if the system resets an open connection
        return Unfetched("no connection", "the server closed the connection", passing=True)
    return Unfetched("no connection", "the response is not valid HTTP", passing=True)
