"""One link against a server that misbehaves: the bytes, or the right reason after the right number of tries."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Iterator
from email.utils import formatdate
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from misbehaving_server import (
    Handler,
    MisbehavingServer,
    chunked_cut,
    closed_port,
    drip,
    endless,
    in_turn,
    raw,
    redirect,
    reply,
    reset,
    silence,
    slowly,
)

from shards.fetch.download import Downloader, Unfetched, open_session
from shards.fetch.options import FetchOptions
from shards.storage.address_policy import IPAddress, Policy, is_any, is_public

BODY = b"not looked at here" * 100


@pytest.fixture(scope="module")
def server() -> Iterator[MisbehavingServer]:
    with MisbehavingServer("127.0.0.2") as running:
        yield running


@pytest.fixture(autouse=True)
def forget(server: MisbehavingServer) -> None:
    server.requests.clear()


def options(**changed: Any) -> FetchOptions:
    quick = {"backoff": 0.01, "retries": 2, "timeout": 5, "max_wait": 2, "max_bytes": 200_000}
    return FetchOptions(Path("unused.csv"), Path("unused"), "link", **{**quick, **changed})


def fetch(*links: str, allowed: Policy = is_any, **changed: Any) -> list[bytes | Unfetched]:
    """What each link gives, fetched at the same time."""
    chosen = options(**changed)

    async def all_links() -> list[bytes | BaseException]:
        async with open_session(chosen, allowed) as session:
            downloader = Downloader(session, chosen, allowed)
            return await asyncio.gather(*map(downloader.fetch, links), return_exceptions=True)

    results: list[bytes | Unfetched] = []
    for result in asyncio.run(all_links()):
        if not isinstance(result, (bytes, Unfetched)):
            raise result
        results.append(result)
    return results


def failure(link: str, **changed: Any) -> Unfetched:
    (result,) = fetch(link, **changed)
    assert isinstance(result, Unfetched), result
    assert "\n" not in result.detail and " at 0x" not in result.detail
    return result


def only_127_0_0_1(address: IPAddress) -> bool:
    return address == ip_address("127.0.0.1")


GOOD = reply(BODY)
TOO_MANY = reply(b"", 429, Retry_After="1")


@pytest.mark.parametrize(
    ("handler", "requests"),
    [
        (GOOD, 1),
        (in_turn(reply(b"oops", 500), GOOD), 2),
        (in_turn(reply(b"", 503), reply(b"", 408), GOOD), 3),
        (in_turn(reset, GOOD), 2),
        (in_turn(reply(BODY, Content_Length=len(BODY) + 9), GOOD), 2),
        (in_turn(raw(b"SSH-2.0-OpenSSH\r\n"), GOOD), 2),
        (slowly(0.2, GOOD), 1),
        (raw(b"HTTP/1.0 200 OK\r\n\r\n" + BODY), 1),
        (reply(gzip.compress(BODY), Content_Encoding="gzip"), 1),  # though we asked for none
    ],
    ids=["plain", "500", "503+408", "reset", "cut", "no http", "slow", "1.0", "gzip"],
)
def test_bytes_come_after_failures_that_pass(server: MisbehavingServer, handler: Handler, requests: int) -> None:
    assert fetch(server.add("/x", handler)) == [BODY]
    assert server.requests == {"/x": requests}


@pytest.mark.parametrize(
    ("handler", "reason", "detail", "requests"),
    [
        (reply(b"gone", 404), "http status", "404", 1),
        (reply(b"", 403), "http status", "403", 1),
        (reply(b"", 204), "http status", "204", 1),
        (reply(b"", 302), "http status", "302", 1),  # without a Location
        (reply(b"", 503), "http status", "503", 3),
        (reply(b"", 429, Retry_After="3600"), "http status", "429", 1),  # not to be asked again so soon
        (reply(BODY, Content_Length=len(BODY) + 9), "truncated", "the connection ended before the end of the file", 3),
        (chunked_cut(BODY), "truncated", "the connection ended before the end of the file", 3),
        (reset, "no connection", "the server closed the connection", 3),
        (raw(b""), "no connection", "the server closed the connection", 3),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "no connection", "the response is not valid HTTP", 3),
        (endless, "too large", "over 200000 bytes", 1),
        (reply(b"", Content_Length=10**12), "too large", "over 200000 bytes", 1),
        (reply(gzip.compress(bytes(10**7)), Content_Encoding="gzip"), "too large", "over 200000 bytes", 1),
        (redirect("ftp://127.0.0.1/x"), "bad link", None, 1),
        (redirect("http://user:secret@127.0.0.1/x"), "bad link", None, 1),
        (redirect("http://[::1"), "bad link", None, 1),
    ],
)  # fmt: skip
def test_every_failure_has_its_reason(
    server: MisbehavingServer, handler: Handler, reason: str, detail: str | None, requests: int
) -> None:
    failed = failure(server.add("/x", handler))
    assert failed.reason == reason
    assert detail is None or failed.detail == detail
    # Where a server hangs up without a word, aiohttp asks once more of its own accord.
    closed = failed.detail == "the server closed the connection"
    assert server.requests["/x"] in ((requests, 2 * requests) if closed else (requests,))
    assert failed.passing is (requests > 1 or detail == "429")


@pytest.mark.parametrize("handler", [drip, silence])
def test_timeout(server: MisbehavingServer, handler: Handler) -> None:
    began = time.monotonic()
    failed = failure(server.add("/x", handler), timeout=0.3, retries=1)
    assert (failed.reason, failed.detail, failed.passing) == ("timeout", "not complete in 0.3 s", True)
    assert server.requests == {"/x": 2}
    assert time.monotonic() - began < 3


def test_nobody_there() -> None:
    refused = failure(f"http://127.0.0.1:{closed_port()}/x")
    assert (refused.reason, refused.detail, refused.passing) == ("no connection", "Connection refused", True)
    unknown = failure("http://nowhere.invalid/x")
    assert (unknown.reason, unknown.detail) == ("no connection", "the host is not known")
    assert failure("http://" + "x" * 70 + ".invalid/").reason in ("bad link", "no connection")


def test_https_to_who_does_not_speak_it(server: MisbehavingServer) -> None:
    failed = failure(server.add("/x", GOOD).replace("http:", "https:"))
    assert (failed.reason, failed.passing) == ("no connection", True)


@pytest.mark.parametrize("when", ["1", "date"])
def test_retry_after_is_honoured_by_all_links_of_the_host(server: MisbehavingServer, when: str) -> None:
    after = when if when == "1" else formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 from now
    link = server.add("/x", in_turn(reply(b"", 429, Retry_After=after), GOOD))
    other = server.add("/y", GOOD)
    began = time.monotonic()
    assert fetch(link, other, per_host=1) == [BODY, BODY]
    assert 0.9 < time.monotonic() - began < 3
    assert server.requests == {"/x": 2, "/y": 1}


def test_redirects_are_followed(server: MisbehavingServer) -> None:
    server.add("/4", GOOD)
    server.add("/3", redirect("/4", 308))
    server.add("/2", redirect("3", 303))
    server.add("/1", redirect(server.url("/2"), 301))
    assert fetch(server.add("/0", redirect("//127.0.0.1:%d/1#x" % server.port))) == [BODY]  # noqa: UP031


def test_redirects_that_lead_nowhere(server: MisbehavingServer) -> None:
    server.add("/b", redirect("/a"))
    loop = failure(server.add("/a", redirect("/b")))
    assert (loop.reason, loop.passing) == ("redirect loop", False)
    assert server.requests == {"/a": 1, "/b": 1}
    for number in range(20):
        server.add(f"/far{number}", redirect(f"/far{number + 1}"))
    assert failure(server.url("/far0")).reason == "too many redirects"
    assert sum(server.requests.values()) == 2 + 6


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "127.0.0.1.", "127.1", "2130706433"),
        *("0x7f.1", "0x7f000001", "0177.0.0.1", "127。0。0。1", "①②⑦.0.0.1", "0", "0.0.0.0", "10.0.0.1"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::127.0.0.1]"),
        *("169.254.169.254", "[fe80::1%25lo]"),
    ],
)
def test_no_link_reaches_this_machine_or_its_network(server: MisbehavingServer, host: str) -> None:
    server.add("/x", GOOD)
    failed = failure(f"http://{host}:{server.port}/x", allowed=is_public)
    # Not every system knows that name.
    unknown = host == "localhost." and failed.detail == "the host is not known"
    assert failed.reason == "private address" or unknown
    assert not server.requests


@pytest.mark.parametrize("host", ["127.0.0.2", "2130706434", "[::1]", "0x7f.2", "169.254.169.254", "two.test"])
def test_no_redirect_does_either(server: MisbehavingServer, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name_two(monkeypatch)
    link = server.add("/x", redirect(f"http://{host}:{server.port}/secret"))
    server.add("/secret", GOOD)
    assert failure(link, allowed=only_127_0_0_1).reason == "private address"
    assert server.requests == {"/x": 1}


def test_a_name_that_changes_its_mind_gains_nothing(server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the address that was judged is the one that is connected to."""
    answers = name_two(monkeypatch, "127.0.0.1", "127.0.0.2")
    link = server.add("/x", GOOD, host="two.test")
    assert fetch(link, allowed=only_127_0_0_1) == [BODY]
    assert answers == ["127.0.0.2"]  # asked once only
    assert failure(link, allowed=only_127_0_0_1).reason == "private address"


def name_two(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Let the name ``two.test`` have one address after the other; the list holds those to come."""
    import socket

    real, left = socket.getaddrinfo, list(answers or ["127.0.0.2"])

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        if host == "two.test":
            host = left.pop(0) if len(left) > 1 or answers else left[0]
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return left


def test_a_host_is_not_asked_more_than_allowed_at_a_time() -> None:
    with MisbehavingServer("127.0.0.2") as server:
        links = [server.add(f"/{n}", slowly(0.05, GOOD)) for n in range(12)]
        for n in range(12):  # another host's links, which all lead to the same one
            links.append(server.add(f"/r{n}", slowly(0.05, redirect(server.url(f"/{n}"))), host="127.0.0.2"))
        assert fetch(*links, per_host=3) == [BODY] * 24
        assert server.most_open == {"127.0.0.1": 3, "127.0.0.2": 3}


def test_what_the_environment_and_servers_say_is_not_taken_along(
    server: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine two.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.2:{server.port}/proxied")
    server.add("/y", GOOD)
    name_two(monkeypatch)  # a name: cookies of bare addresses are ignored by all
    link = server.add("/x", reply(b"", 302, Location="/y", Set_Cookie="a=b"), host="two.test")
    assert fetch(link, user_agent="posters of ours/1") == [BODY]
    sent = server.headers["/y"]
    assert sent["user-agent"] == "posters of ours/1"
    assert not {"cookie", "authorization", "referer"} & set(sent)
