"""One link to bytes or to the reason why there are none: tries, redirects, limits."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import os
import random
import ssl
import time
from collections import defaultdict

import aiohttp
from yarl import URL

from shards.errors import one_line, without_secrets
from shards.fetch.links import BadLink, parse_link
from shards.fetch.options import FetchOptions
from shards.inputs.metadata import Unusable
from shards.storage.address_policy import Policy, PolicyResolver, PrivateAddress, literal_address

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
#: Answers that another try may change, beside 5xx: request timeout, too early, too many requests.
PASSING = (408, 425, 429)
#: This machine is out of something; no link is to blame.
OUR_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
#: The longest pause between two tries that we choose ourselves, in seconds.
MAX_BACKOFF = 30.0


class Unfetched(Unusable):
    """A link that gave no file."""

    def __init__(self, reason: str, detail: str, *, passing: bool = False, retry: bool = True) -> None:
        super().__init__(reason, detail)
        self.passing = passing  # whether another run may fare better
        self.retry = passing and retry  # whether another try in this run may


def open_session(options: FetchOptions, allowed: Policy) -> aiohttp.ClientSession:
    """The HTTP session of a run. To be closed by the caller, as is usual."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=PolicyResolver(allowed),
            limit=0,  # the run's workers are the limit, and the downloader's places per host
            keepalive_timeout=5,  # idle connections to many hosts would use up the open files
        ),
        timeout=aiohttp.ClientTimeout(total=options.timeout, sock_connect=options.connect_timeout),
        # Not what the environment says: a proxy would connect on our behalf, to addresses we never judged,
        # and passwords of a .netrc would go to whatever host a link names.
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": options.user_agent,
            "Accept": "image/jpeg,image/png,image/*;q=0.8",
            "Accept-Encoding": "identity",  # pictures are compressed already
        },
    )


class Downloader:
    """Fetches links one by one, for any number of callers at a time."""

    def __init__(self, session: aiohttp.ClientSession, options: FetchOptions, allowed: Policy) -> None:
        self._session, self._options, self._allowed = session, options, allowed
        # By host, not by link: redirects lead many links to one host.
        self._places: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(options.per_host))
        self._silent_until: dict[str, float] = {}

    async def fetch(self, link: str) -> bytes:
        """The link's bytes. Raises Unfetched, after as many tries as make sense."""
        tries = 0
        while True:
            try:
                return await self._follow(link)
            except Unfetched as failure:
                if not failure.retry or tries == self._options.retries:
                    raise
            pause = min(MAX_BACKOFF, self._options.backoff * 2**tries)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # else all would come back at once
            tries += 1

    async def _follow(self, link: str) -> bytes:
        """One try, through redirects. Each hop is judged as if the CSV had named it."""
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
        """The body, or where a redirect leads."""
        host = url.raw_host or ""
        literal = literal_address(host)  # these never reach the resolver
        if literal is not None and not self._allowed(literal):
            raise Unfetched("private address", f"{host} is {literal}" if host != str(literal) else host)
        async with self._places[host]:
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
                what = "no connection" if connecting else "not done"
                raise Unfetched("timeout", f"{what} in {seconds:g} s", passing=True) from None
            except (aiohttp.ClientError, ValueError) as error:  # ValueError: Locations that no URL can be
                raise _unfetched(error) from None

    async def _wait_for(self, host: str) -> None:
        """Keep silent towards a host for as long as it asked to."""
        while (seconds := self._silent_until.get(host, 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def _check_status(self, response: aiohttp.ClientResponse, host: str) -> None:
        status = response.status
        if status == 200:
            return
        passing = status >= 500 or status in PASSING
        seconds = _seconds(response.headers.get("Retry-After", ""))
        # Sooner than it asks for would be unwelcome, and later than max_wait is too late for this run.
        retry = seconds is None or seconds <= self._options.max_wait
        if passing and retry and seconds is not None:
            self._silent_until[host] = max(self._silent_until.get(host, 0.0), time.monotonic() + seconds)
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
    """Retry-After's seconds or date, as seconds from now; None if it says neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _unfetched(error: Exception) -> Unfetched:
    """The client's many exceptions in our few words, without what differs from run to run."""
    if isinstance(error, aiohttp.ClientPayloadError):
        return Unfetched("truncated", "the connection ended before the file did", passing=True)
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch)):
        return Unfetched("no connection", "the certificate is not valid", passing=True, retry=False)
    if isinstance(error, aiohttp.ClientSSLError):
        return Unfetched("no connection", "no secure connection could be agreed on", passing=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, PrivateAddress):
            return Unfetched("private address", str(cause))
        if cause.errno in OUR_FAULT:
            raise cause
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Unfetched("no connection", "the host is not known", passing=True)
        word = os.strerror(cause.errno) if cause.errno else "no address could be connected to"
        if cause.errno is None and isinstance(cause, ssl.SSLError):
            word = "no secure connection could be agreed on"
        return Unfetched("no connection", word, passing=True)
    if isinstance(error, (aiohttp.InvalidURL, ValueError)):
        return Unfetched("bad link", one_line(error)[:200])
    if isinstance(error, aiohttp.ClientConnectionError):  # also the system's resets of open connections
        return Unfetched("no connection", "the server closed the connection", passing=True)
    return Unfetched("no connection", "the answer is no HTTP", passing=True)
