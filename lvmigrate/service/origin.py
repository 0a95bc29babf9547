"""Where somebody comes from, for counting: by an address that nobody else has, and nobody has many of."""

from __future__ import annotations

import ipaddress
from typing import Final

#: How long the prefix of a network is that somebody has to themselves.
_PREFIX: Final = 64


def origin(host: str) -> str:
    """An address of IPv4 as it is; of IPv6 the /64, of which anybody has as many addresses as they like."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address.packed, _PREFIX), strict=False))
    return str(address)
