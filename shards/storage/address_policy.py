"""Rules for the IP addresses of links and redirects. They protect services of this machine and its network.

A link in a CSV is not trusted and must satisfy ``is_public``. A URL that the user typed can have any address. If the
server of this URL redirects, ``reachable_from`` limits the addresses of the target.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Set
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

IPAddress = IPv4Address | IPv6Address

#: The kinds of addresses: this machine, link-local, private network, public internet. Clouds serve credentials at
#: link-local addresses.
MACHINE, LINK, NETWORK, PUBLIC = KINDS = ("machine", "link", "network", "public")

#: A function that returns whether connections to an address are allowed.
Policy = Callable[[IPAddress], bool]

#: Networks that some versions of Python report as global, but that are not public. They belong to gateways,
#: protocols such as Teredo, and documentation.
_SERVICES = [ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")]
#: Addresses of "this host on this network". A connection to one of them reaches this machine.
_IPV4_THIS = IPv4Network("0.0.0.0/8")
_IPV6_UNICAST = IPv6Network("2000::/3")
#: Addresses that DNS64 makes from IPv4 addresses in a network with only IPv6. Their last 32 bits are the IPv4 address.
_NAT64 = IPv6Network("64:ff9b::/96")


class PrivateAddress(OSError):
    """All addresses of a host are forbidden."""


def is_public(address: IPAddress) -> bool:
    """Return whether an address belongs to the public internet.

    >>> is_public(ip_address("93.184.216.34")), is_public(ip_address("169.254.169.254"))
    (True, False)
    """
    address = _reached(address)
    if not address.is_global or any(address in network for network in _SERVICES):
        return False
    if isinstance(address, IPv4Address):
        return not (address.is_multicast or address.is_reserved)
    # All other IPv6 addresses (loopback, link-local, unique local, multicast, unassigned) are outside of 2000::/3.
    return address in _IPV6_UNICAST


def kind_of(address: IPAddress) -> str:
    """Return the kind of an address, one of KINDS.

    >>> [kind_of(ip_address(text)) for text in ("8.8.8.8", "10.0.0.1", "::ffff:169.254.169.254", "0.0.0.0")]
    ['public', 'network', 'link', 'machine']
    """
    address = _reached(address)
    if is_public(address):
        return PUBLIC
    if address.is_loopback or address.is_unspecified or address in _IPV4_THIS:
        return MACHINE
    return LINK if address.is_link_local else NETWORK


def _reached(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 address contains. If there is none, return the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def reachable_from(kinds: Set[str]) -> frozenset[str]:
    """Return the kinds of addresses to which a server may redirect. ``kinds``: the kinds of the server's addresses.

    A target is allowed if it is public or of the server's own kind. A server that is not public can also redirect to
    the private network. If a server has several kinds, each of them must allow the target.

    >>> sorted(reachable_from({"network"})), sorted(reachable_from({"machine", "public"}))
    (['network', 'public'], ['public'])
    """

    def leads(source: str, target: str) -> bool:
        return target in (PUBLIC, source) or (target == NETWORK and source != PUBLIC)

    return frozenset(target for target in KINDS if all(leads(source, target) for source in kinds))


def is_any(address: IPAddress) -> bool:
    """Allow every address (the policy of --allow-private)."""
    return True


def literal_ip(host: str) -> IPAddress | None:
    """Parse a host as an address, in every spelling that the system accepts. None if the host is a name.

    >>> literal_ip("0x7f.1")
    IPv4Address('127.0.0.1')
    """
    host = host.rstrip(".")
    with contextlib.suppress(ValueError):
        return ip_address(host)
    with contextlib.suppress(OSError, ValueError):  # inet_aton parses spellings such as 2130706433 and 0177.1
        return IPv4Address(socket.inet_aton(host))
    return None


class PolicyResolver(AbstractResolver):
    """Name resolver that returns only the addresses that a policy allows.

    The connection uses exactly the checked addresses. So a name cannot bypass the policy if its address changes later.
    """

    def __init__(self, allowed: Policy, inner: AbstractResolver | None = None) -> None:
        self._allowed = allowed
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses of a host. Raises PrivateAddress if all its addresses are forbidden."""
        found = await self._inner.resolve(host, port, family)
        allowed = [result for result in found if self._allowed(ip_address(result["host"]))]
        if found and not allowed:
            raise PrivateAddress(f"{host} is {found[0]['host']}")
        return allowed

    async def close(self) -> None:
        await self._inner.close()
