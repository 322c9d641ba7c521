"""Which addresses beyond the mesh a process may call: one list for all of them, and a client that keeps to it.

A caller names hosts, so a caller could have the mesh fetch what only the mesh can reach: a cloud's metadata service, a
database beside it. What is checked is the address that a name resolves to, and that very address is connected to; a
second resolution, which may answer otherwise, never happens. Redirects are not followed, proxies of the environment not
used.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = "loopback"
_LOOPBACK_NETWORKS = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
# IPv6 whose last 32 bits are IPv4: NAT64, mapped, translated, compatible.
_LAST_32_BITS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "::/96")))
# Translators of somebody's own network (RFC 8215), which Python calls global.
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
# Of an interface's identifier the upper half, but for the bit that says whether it is the only one in the world.
_ISATAP = 0x00005EFE
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_PORTS = {"http": 80, "https": 443}


class OutboundRefused(Exception):
    """The list does not have it."""


@dataclass(frozen=True)
class Endpoint:
    """Where a URL leads, before it is resolved. `host` is in lower case, without the brackets of IPv6."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Endpoint:
        """Raises ValueError for what is no plain http(s) URL."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError("must be an http:// or https:// address")
        if parts.username or parts.password:
            raise ValueError("must hold no user name or password; use a secret")
        if parts.fragment or re.search(r"[\x00-\x20\\]", url):
            raise ValueError("must hold no fragment, no blank and no backslash")
        return cls(parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme])


class Allowance:
    """The list. Entries: `loopback`; a network such as 10.0.0.0/8 or an address; a host name; each with `:port` to
    allow that port alone.

    A name's entry covers public addresses only: where a name leads into a network of one's own, that network has to be
    listed too, so that whoever holds the name's DNS cannot choose what is called there.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises ValueError for an entry that is none of these."""
        self._networks: list[tuple[Network, int | None]] = []
        self._hosts: set[tuple[str, int | None]] = set()
        for entry in entries:
            self._add(entry.strip().lower())

    def may_allow(self, endpoint: Endpoint) -> bool:
        """Whether it could be allowed, by what is known without a look at the name's addresses. A name may lead into
        any network that is listed; into this machine only one that is listed itself."""
        literal = _address(endpoint.host)
        if literal is not None:
            return self._allows(endpoint, literal)
        if endpoint.host == "localhost":
            return any(self._allows(endpoint, ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1"))
        return self._names(endpoint) or any(
            port in (None, endpoint.port) and not network.is_loopback for network, port in self._networks
        )

    def resolve(self, endpoint: Endpoint) -> Address:
        """An allowed address of the endpoint. Raises OutboundRefused where it has none, OSError where it has no address
        at all. Blocks."""
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        addresses = [_plain(ipaddress.ip_address(str(one[4][0]).partition("%")[0])) for one in found]
        for address in addresses:
            if self._allows(endpoint, address):
                return address
        # Without the addresses, which may be those of a network that the caller does not see.
        raise OutboundRefused(f"{endpoint.host}:{endpoint.port} may not be called; RLHF_OUTBOUND_ALLOW lists what may")

    def _allows(self, endpoint: Endpoint, address: Address) -> bool:
        listed = any(
            address.version == network.version and address in network and port in (None, endpoint.port)
            for network, port in self._networks
        )
        return listed or (self._names(endpoint) and _is_public(address))

    def _names(self, endpoint: Endpoint) -> bool:
        return not self._hosts.isdisjoint({(endpoint.host, None), (endpoint.host, endpoint.port)})

    def _add(self, entry: str) -> None:
        host, port = _split(entry)
        if host == LOOPBACK:
            self._networks += [(network, port) for network in _LOOPBACK_NETWORKS]
            return
        try:
            self._networks.append((ipaddress.ip_network(host), port))
        except ValueError:
            if not _HOST.fullmatch(host) or re.fullmatch(r"[0-9./]+", host):
                raise ValueError(
                    f"{entry!r} is neither {LOOPBACK}, a network such as 10.0.0.0/8 nor a host name"
                ) from None
            self._hosts.add((host, port))


def client(allowance: Allowance, timeout_seconds: float, connections: int = 1) -> httpx.Client:
    """An HTTP client that connects to allowed addresses alone; a request to another raises OutboundRefused. So many
    `connections` are there at a time: a request that finds none free waits for one, and times out."""
    import httpx

    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)

    class Pinned(httpx.BaseTransport):
        def __init__(self) -> None:
            self._inner = httpx.HTTPTransport(trust_env=False, limits=limits)

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            endpoint = Endpoint.of(str(request.url))
            try:
                address = allowance.resolve(endpoint)
            except OSError as error:
                raise httpx.ConnectError(f"{endpoint.host}: {error}", request=request) from error
            # The certificate is still that of the name, and so is the Host header.
            request.extensions = {**request.extensions, "sni_hostname": endpoint.host}
            request.url = request.url.copy_with(host=str(address))
            return self._inner.handle_request(request)

        def close(self) -> None:
            self._inner.close()

    return httpx.Client(transport=Pinned(), timeout=timeout_seconds, follow_redirects=False, trust_env=False)


def _split(entry: str) -> tuple[str, int | None]:
    """Host and port; IPv6 with a port stands in brackets."""
    bracketed = re.fullmatch(r"\[([0-9a-f:.]+)\](?::([0-9]{1,5}))?", entry)
    if bracketed:
        return bracketed[1], int(bracketed[2]) if bracketed[2] else None
    host, colon, port = entry.rpartition(":")
    if colon and ":" not in host and port.isdecimal():
        return host, int(port)
    return entry, None


def _address(host: str) -> Address | None:
    try:
        return _plain(ipaddress.ip_address(host))
    except ValueError:
        return None


def _is_public(address: Address) -> bool:
    """Whether anybody could have it, and what it stands for: IPv6 that a translator or a tunnel turns into IPv4 leads
    where that does."""
    inner = _embedded(address) if isinstance(address, ipaddress.IPv6Address) else []
    local = isinstance(address, ipaddress.IPv6Address) and address in _LOCAL_NAT64
    return address.is_global and not address.is_multicast and not local and all(map(_is_public, inner))


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that it is made of: 6to4 (RFC 3056), Teredo's server and client (RFC 4380), NAT64 (RFC 6052),
    IPv4-mapped, -translated and -compatible (RFC 4291, RFC 2765), ISATAP (RFC 5214)."""
    found = [address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _LAST_32_BITS) or (int(address) >> 32) & 0xFDFFFFFF == _ISATAP:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def _plain(address: Address) -> Address:
    """IPv4 written as IPv6 is IPv4."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
