"""Which addresses a link or a redirect may lead to: not to services of this machine or network, for a stranger.

A link of a CSV is a stranger's: ``is_public``. A URL that the user typed may be any, and where a server that answered
may send us on is ``reachable_from`` that server's addresses.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Set
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

IPAddress = IPv4Address | IPv6Address

#: What an address is to this machine: itself, its link (where clouds keep their credentials), its network, or the rest.
MACHINE, LINK, NETWORK, PUBLIC = KINDS = ("machine", "link", "network", "public")

#: Says whether an address may be connected to.
Policy = Callable[[IPAddress], bool]

#: Which Python's tables count as global: gateways' own services (port control, relays), protocol assignments (Teredo
#: among them), and documentation, which older Pythons do not know.
_SERVICES = [ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")]

#: "This host on this network": connecting there reaches this machine.
_IPV4_THIS = IPv4Network("0.0.0.0/8")

_IPV6_UNICAST = IPv6Network("2000::/3")

#: DNS64 answers with these where a network speaks only IPv6; the last 32 bits are the IPv4 address.
_NAT64 = IPv6Network("64:ff9b::/96")


class PrivateAddress(OSError):
    """A host that leads to no address we may connect to."""


def is_public(address: IPAddress) -> bool:
    """Whether an address is some other machine's on the open internet.

    >>> is_public(ip_address("93.184.216.34")), is_public(ip_address("169.254.169.254"))
    (True, False)
    """
    address = _reached(address)
    if not address.is_global or any(address in network for network in _SERVICES):
        return False
    if isinstance(address, IPv4Address):
        return not (address.is_multicast or address.is_reserved)
    # Only what is given out as unicast: loopback, link-local, unique local, multicast and what may yet be
    # assigned lie outside.
    return address in _IPV6_UNICAST


def kind_of(address: IPAddress) -> str:
    """One of KINDS.

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
    """The IPv4 address that an IPv6 one stands for, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def reachable_from(kinds: Set[str]) -> frozenset[str]:
    """Kinds of addresses to which servers at addresses of ``kinds`` may send us on: never nearer to this machine.

    >>> sorted(reachable_from({"network"})), sorted(reachable_from({"machine", "public"}))
    (['network', 'public'], ['public'])
    """

    def leads(source: str, target: str) -> bool:
        return target in (PUBLIC, source) or (target == NETWORK and source != PUBLIC)

    return frozenset(target for target in KINDS if all(leads(source, target) for source in kinds))


def is_any(address: IPAddress) -> bool:
    """The policy of --allow-private."""
    return True


def literal_address(host: str) -> IPAddress | None:
    """The address that a host is, in whatever spelling the system would understand; None for a name.

    >>> literal_address("0x7f.1")
    IPv4Address('127.0.0.1')
    """
    host = host.rstrip(".")
    with contextlib.suppress(ValueError):  # 2130706433, 0177.1 and the like are left to the system's own reading
        return ip_address(host)
    with contextlib.suppress(OSError, ValueError):
        return IPv4Address(socket.inet_aton(host))
    return None


class PolicyResolver(AbstractResolver):
    """Name lookup that only tells addresses which the policy allows.

    The connection is made to the very addresses that were judged: a name that answers differently the
    next time gains nothing.
    """

    def __init__(self, allowed: Policy, inner: AbstractResolver | None = None) -> None:
        self._allowed = allowed
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of a host. Raises PrivateAddress if it has some, but none that is allowed."""
        found = await self._inner.resolve(host, port, family)
        allowed = [result for result in found if self._allowed(ip_address(result["host"]))]
        if found and not allowed:
            raise PrivateAddress(f"{host} is {found[0]['host']}")
        return allowed

    async def close(self) -> None:
        await self._inner.close()
