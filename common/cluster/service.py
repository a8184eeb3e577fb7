"""A service, as balancers and bridges name it: the endpoint that clients connect to, and a number.

The endpoint is what a packet says of its service, and so the key by which
services are found. The number is what tables keep in its place: it is short,
and stays the service's own for as long as anything remembers it.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from common.wire.packet import TCP

TCP_OCTET = bytes([TCP])


class Endpoint(NamedTuple):
    """Where clients connect to. address: as on the wire. protocol: its number. port: 1..65535."""

    address: bytes
    protocol: int
    port: int

    @classmethod
    def tcp(cls, address: IPv4Address | IPv6Address, port: int) -> "Endpoint":
        """The TCP endpoint of an address and port."""
        return cls(address.packed, TCP, port)

    @property
    def port_octets(self) -> bytes:
        """The port as on the wire."""
        return self.port.to_bytes(2, "big")

    @property
    def packed(self) -> bytes:
        """The key of the service: address, protocol, port, as `key_of` makes it of a packet."""
        return key_of(self.address, bytes([self.protocol]), self.port_octets)


def key_of(address: bytes, protocol: bytes, port: bytes) -> bytes:
    """The key of the service at an address, protocol (one octet) and port (two)."""
    return address + protocol + port


def numbered(
    endpoints: Iterable[Endpoint], known: Mapping[Endpoint, int], limit: int
) -> dict[Endpoint, int]:
    """A number below `limit` for each endpoint: its own if it is known, else the least free one.

    known: all that is remembered, also of services that are configured no more: what still
           mentions their numbers must not be taken for another's.
    Raises: ValueError where there are more services than numbers.
    """
    taken = set(known.values())
    free = (number for number in range(limit) if number not in taken)
    numbers = {}
    for endpoint in endpoints:
        number = known.get(endpoint)
        if number is None:
            number = next(free, None)
        if number is None:
            raise ValueError(f"more than {limit} services, with those that are remembered")
        numbers[endpoint] = number
    return numbers
