"""Where servers on HTTP may send us, and what they hear of the user's secrets.

Tests have only loopback addresses: 127.0.0.1 counts as the open internet here, 127.0.0.2 as what it is.
"""

from __future__ import annotations

import asyncio
import base64
import pickle
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from failing import fails
from http_tools import BODY, PRIVATE, PUBLIC, READERS, blocks, got, whole
from misbehaving_server import Handler, MisbehavingServer, redirect, reply, reset
from yarl import URL

from shards.errors import UserError
from shards.storage import address_policy as addresses
from shards.storage import http_client
from shards.storage.http_client import MAX_REDIRECTS, HttpClient, Refused
from shards.storage.paths import StoragePath, storage_path

pytest_plugins = ("http_tools",)
pytestmark = pytest.mark.usefixtures("short_waits")


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> None:
    real = addresses.is_public
    monkeypatch.setattr(addresses, "is_public", lambda address: address == ip_address(PUBLIC) or real(address))


# --- where a redirect may lead ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("internet")
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.2", "127.2", "0x7f.2", "2130706434", "[::ffff:127.0.0.2]", "0.0.0.0", "[::1]", "[::]"),
        *("169.254.169.254", "10.0.0.1", "192.168.1.1", "[fd00::1]", "[fe80::1]", "[64:ff9b::a9fe:a9fe]"),
    ],
)
def test_a_redirect_never_leads_from_a_public_address_to_a_private_one(
    hosts: MisbehavingServer, host: str, read: Callable[[StoragePath], object]
) -> None:
    path = storage_path(hosts.add("/set/train.tar", redirect(f"http://{host}:{hosts.port}/victim")))
    began = time.monotonic()
    with fails("network", "an address of this machine or network"):
        read(path)
    assert not hosts.requests["/victim"] and hosts.requests["/set/train.tar"] == 1
    assert time.monotonic() - began < 4


@pytest.mark.usefixtures("internet")
def test_nor_by_several_steps(hosts: MisbehavingServer) -> None:
    hosts.add("/second", redirect(f"http://{PRIVATE}:{hosts.port}/victim"))
    path = storage_path(hosts.add("/first", redirect("/second", 308)))
    with fails("network", PRIVATE):
        got(path)
    hosts.add("/second", redirect(f"http://{PUBLIC}:{hosts.port}/third"))
    hosts.add("/third", reply(BODY))
    # What the user typed may be private, and lead to the internet; not back, whatever it was at first.
    typed = storage_path(hosts.url("/first", PRIVATE))
    assert got(typed) == BODY
    hosts.add("/third", redirect(f"http://{PRIVATE}:{hosts.port}/victim"))
    with fails("network", PRIVATE):
        got(typed)
    assert not hosts.requests["/victim"]


def test_between_addresses_of_this_machine_it_may(hosts: MisbehavingServer) -> None:
    hosts.add("/there", reply(BODY))
    path = storage_path(hosts.add("/here", redirect(f"http://{PRIVATE}:{hosts.port}/there")))
    assert got(path) == whole(path) == blocks(path, size=len(BODY)) == BODY
    link = storage_path(hosts.add("/here", redirect("http://169.254.169.254/latest/meta-data/")))
    with fails("network", "169.254.169.254"):
        got(link)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://h/", "http://[x/"]
)
def test_a_redirect_stays_with_http(hosts: MisbehavingServer, location: str) -> None:
    path = storage_path(hosts.add("/file", redirect(location)))
    with fails("network", path, "redirects"):
        got(path)
    assert hosts.requests["/file"] == 1


def test_nor_does_it_leave_https() -> None:
    with pytest.raises(Refused, match=r"from https to http://h/x\?\.\.\."):
        http_client._target(URL("https://h/a"), "http://me:secret@h/x?secret=1")
    assert str(http_client._target(URL("https://h/a/b"), "../c")) == "https://h/c"
    assert str(http_client._target(URL("http://h/a"), "//me:pw@other/c#d")) == "http://other/c"


def test_redirects_end(hosts: MisbehavingServer) -> None:
    path = storage_path(hosts.add("/file", redirect("/file")))
    with fails("network", path, f"more than {MAX_REDIRECTS}"):
        got(path)
    assert hosts.requests["/file"] == MAX_REDIRECTS + 1


class Names(AbstractResolver):
    """A name server that the test tells what to answer."""

    answers: list[str]

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=one, port=port, family=socket.AF_INET, proto=0, flags=0)
            for one in self.answers
        ]

    async def close(self) -> None:
        pass


@pytest.mark.usefixtures("internet")
def test_a_name_is_judged_by_the_address_that_is_connected_to(
    hosts: MisbehavingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere the next time gains nothing, in a redirect or without one."""
    monkeypatch.setattr(addresses, "ThreadedResolver", Names)
    hosts.add("/file", reply(BODY, Connection="close"))
    for path, host in (("/away", "other.example"), ("/again", "set.example")):
        to = f"http://{host}:{hosts.port}/victim"
        hosts.add(path, reply(b"", 302, Location=to, Connection="close"))

    async def ask(client: HttpClient, path: str) -> bytes:
        async with client.get(URL(f"http://set.example:{hosts.port}{path}")) as response:
            return await response.read()

    async def ask_all() -> None:
        client = HttpClient()
        try:
            Names.answers = [PUBLIC]
            assert await ask(client, "/file") == BODY
            Names.answers = [PRIVATE]
            with pytest.raises(Refused, match=rf"other\.example is {PRIVATE}"):
                await ask(client, "/away")
            with pytest.raises(Refused, match=r"set\.example"):
                await ask(client, "/again")
            for session in client._sessions.values():  # some time later
                connector: Any = session.connector
                connector.clear_dns_cache()
            with pytest.raises(Refused, match="was public and is now"):
                await ask(client, "/victim")
        finally:
            await client.close()

    asyncio.run(ask_all())
    assert not hosts.requests["/victim"]


def test_kinds_of_addresses() -> None:
    kinds = {
        "machine": ["127.0.0.1", "127.255.0.1", "0.0.0.0", "0.1.2.3", "::1", "::", "::ffff:127.0.0.1"],
        "link": ["169.254.169.254", "fe80::1", "::ffff:169.254.1.1", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"],
        "network": ["10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "fd00:ec2::254", "::ffff:10.0.0.1"],
        "public": ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"],
    }
    for kind, texts in kinds.items():
        assert {addresses.kind_of(ip_address(text)) for text in texts} == {kind}, kind
    assert addresses.reachable_from(set()) == set(addresses.KINDS)
    for sources in ({"public"}, {"public", "machine"}, {"public", "network"}, {"machine", "link"}):
        assert addresses.reachable_from(sources) <= {"public", "network"}
        assert ("network" in addresses.reachable_from(sources)) is ("public" not in sources)
    assert addresses.kind_of(IPv4Address(PUBLIC)) == "machine"


# --- what a server hears of the user's secrets -----------------------------------------------------------------------


def test_secrets_go_to_the_server_of_the_url_and_no_other(hosts: MisbehavingServer) -> None:
    hosts.add("/set/manifest.json?token=hidden", redirect(f"http://{PRIVATE}:{hosts.port}/there"))
    hosts.add("/there", redirect(f"http://{PUBLIC}:{hosts.port}/back"))
    hosts.add("/back", reply(BODY))
    url = f"http://me:pass%40word@{PUBLIC}:{hosts.port}/set?token=hidden"
    path = pickle.loads(pickle.dumps(storage_path(url))) / "manifest.json"  # as a task on another machine has it
    assert got(path) == BODY
    expected = base64.b64encode(b"me:pass@word").decode().lower()
    heard = {asked: fields.get("authorization") for asked, fields in hosts.headers.items()}
    assert heard == {"/set/manifest.json?token=hidden": f"basic {expected}", "/there": None, "/back": None}
    for text in (str(path), repr(path), f"{path}", path.name, str(path.parent)):
        assert "word" not in text and "hidden" not in text and "me" not in text.replace("manifest", "")


def test_they_go_on_to_another_path_of_that_server(hosts: MisbehavingServer) -> None:
    hosts.add("/set", redirect("/other"))
    hosts.add("/other", reply(BODY))
    assert got(storage_path(f"http://me:word@{PUBLIC}:{hosts.port}/set")) == BODY
    assert "authorization" in hosts.headers["/other"]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("answer", [reset, reply(b"no", 403), reply(b"no", 404), redirect("http://10.0.0.1/?hidden")])
def test_no_error_shows_them(
    hosts: MisbehavingServer, read: Callable[[StoragePath], object], answer: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.storage.http_client.MIN_REQUEST_SECONDS", 0.2)
    hosts.add("/set?token=hidden", answer)
    path = storage_path(f"http://me:word@{PUBLIC}:{hosts.port}/set?token=hidden")
    with pytest.raises((UserError, FileNotFoundError)) as caught:
        if read(path) is None:
            raise FileNotFoundError
    assert "hidden" not in str(caught.value) and "word" not in str(caught.value)
