"""Which addresses may be called: those of the public internet, and the networks that the configuration allows.

A URL is given by whoever may write to a database, and the node stands where that person does not: beside the cloud's
metadata service, the operator's console, other nodes. So it is the resolved address that is judged, at each connection,
and the connection goes to exactly that address: a name that resolves to another one the next time gains nothing.
An IPv4 address inside an IPv6 one (mapped, NAT64, 6to4, Teredo) is judged as what it is.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from kvnode.base import limits
from kvnode.base.config import Network, parse_network
from kvnode.machine.queue.push_url import PushUrl

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What some versions of Python take for addresses of the internet, or for neither: a provider's own network, protocol
# assignments, relays and translators, former site-local ones.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "fec0::/10", "2001::/23")
)


class NotCalled(Exception):
    """The host may not be called, or has no address: nothing was sent, and the message is not to blame."""


class AddressPolicy:
    """What may be called.

    Args:
        allowed: networks that may be, whatever they are: "127.0.0.0/8", "10.1.2.3", "fd00::/8".
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed: list[Network] = [parse_network(text, "push_allow") for text in allowed]

    def allows(self, address: Address) -> bool:
        """Whether a connection to this address may be made."""
        if any(address.version == network.version and address in network for network in self._allowed):
            return True
        inner = _inner(address)
        if inner is not None:
            return self.allows(inner)
        return is_public(address)


def is_public(address: Address) -> bool:
    """Whether it is an ordinary address of the internet: not loopback, private, link-local, shared, multicast, ..."""
    if address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback:
        return False
    if address.is_link_local or address.is_private or not address.is_global:
        return False
    return not any(address.version == special.version and address in special for special in _SPECIAL)


def _inner(address: Address) -> Address | None:
    """The IPv4 address that an IPv6 one stands for."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


async def allowed_addresses(url: PushUrl, policy: AddressPolicy) -> list[str]:
    """The addresses of the URL's host that may be called, in the resolver's order. Raises NotCalled."""
    found = await _resolve(url)
    allowed = [text for text in found if policy.allows(ipaddress.ip_address(text))]
    if not allowed:
        who = f"{url.host} is" if found == [url.host] else f"{url.host} is {', '.join(found[:3])}, which is"
        raise NotCalled(
            f"{who} not an address of the public internet: nothing is called there unless `push_allow` in the "
            "configuration of the nodes names its network"
        )
    return allowed


async def _resolve(url: PushUrl) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(limits.PUSH_RESOLVE_TIMEOUT_MS / 1_000):
            found = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise NotCalled(f"the address of {url.host} was not found within {limits.PUSH_RESOLVE_TIMEOUT_MS} ms") from None
    except (OSError, UnicodeError) as error:
        raise NotCalled(f"the address of {url.host} is not known: {error}") from None
    # A zone names an interface of this machine; link-local addresses are refused anyway.
    texts = (str(sockaddr[0]).partition("%")[0] for *_, sockaddr in found)
    return list(dict.fromkeys(texts))
