"""Only other machines on the open internet may be asked, however a link spells the rest."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from shards.storage.address_policy import PolicyResolver, PrivateAddress, is_public, literal_ip

#: IANA's special-purpose registry, multicast and the reserved rest.
NOT_PUBLIC_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    )
)


def embeddings(address: IPv4Address) -> list[IPv6Address]:
    """IPv6 addresses that reach an IPv4 address: mapped, NAT64, 6to4."""
    number = int(address)
    return [
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(int(IPv6Address("64:ff9b::")) | number),
        IPv6Address(0x2002 << 112 | number << 80 | 1),
    ]


@given(st.ip_addresses(v=4) | st.sampled_from(NOT_PUBLIC_IPV4).flatmap(lambda n: st.ip_addresses(network=n)))
def test_ipv4_is_judged_by_the_registry_also_inside_ipv6(address: IPv4Address) -> None:
    expected = not any(address in network for network in NOT_PUBLIC_IPV4)
    assert is_public(address) is expected
    assert [is_public(embedding) for embedding in embeddings(address)] == [expected] * 3


@given(st.ip_addresses(v=6))
def test_ipv6_is_public_only_where_unicast_is_given_out(address: IPv6Address) -> None:
    if is_public(address):
        assert int(address) >> 125 == 1 or address.ipv4_mapped or int(address) >> 32 == 0x64FF9B << 64


@pytest.mark.parametrize(
    "text",
    [
        *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "fe80::1", "fe80::1%eth0"),
        *("fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "2001::1", "3fff::1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "100::1", "5f00::1"),
    ],
)
def test_ipv6_that_is_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["2606:4700::1111", "2a00:1450:4001::200e", "64:ff9b::5db8:d822", "8.8.8.8"])
def test_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("::1", "::1"),
        ("fe80::1%25eth0", "fe80::1%25eth0"),
        ("localhost", None),
        ("1.2.3.4.example", None),
        ("beef.example", None),
        ("x" * 300, None),
        ("ü.example", None),
    ],
)
def test_literal_addresses_in_all_spellings(host: str, address: str | None) -> None:
    assert literal_ip(host) == (ip_address(address) if address else None)


class Names(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None:
        pass


def test_the_resolver_tells_only_allowed_addresses() -> None:
    def told(*addresses: str) -> list[str]:
        found = asyncio.run(PolicyResolver(is_public, Names(*addresses)).resolve("poster.example", 80))
        return [result["host"] for result in found]

    assert told("8.8.8.8", "10.0.0.1", "::1", "2606:4700::1111") == ["8.8.8.8", "2606:4700::1111"]
    with pytest.raises(PrivateAddress, match=r"poster\.example is 10\.0\.0\.1"):
        told("10.0.0.1", "::1")
    assert told() == []
