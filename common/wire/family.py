"""The families that there are, and whose a packet, an address or a five-tuple is.

A further family is one more file beside ipv4.py, and its name here.
"""

from common.wire.ipv4 import IPV4
from common.wire.packet import Family, Packet

FAMILIES: dict[int, Family] = {4: IPV4}  # by the version in a header's first four bits

# Octets of an unknown version are IPv4's to refuse: the fault then has a name.
_FAMILIES = tuple(FAMILIES.get(version, IPV4) for version in range(16))
_LOOKS = tuple(family.look for family in _FAMILIES)
_DSTS = tuple(
    slice(family.addresses_off + family.address_len, family.addresses_off + 2 * family.address_len)
    for family in _FAMILIES
)
_OF_ADDRESS = {family.address_len: family for family in FAMILIES.values()}
_PORTS_LEN = 4
_OF_FIVE_TUPLE = {2 * family.address_len + _PORTS_LEN: family for family in FAMILIES.values()}


def look(octets: bytes) -> Packet:
    """A view of a packet of whatever family; it never raises."""
    return _LOOKS[octets[0] >> 4 if octets else 0](octets)


def dst_of(octets: bytes) -> bytes:
    """The destination alone, of a packet of our own."""
    return octets[_DSTS[octets[0] >> 4]]


def stated_len(octets: bytes) -> int:
    """What a packet says of its own length, whatever there is of it."""
    return _FAMILIES[octets[0] >> 4].stated_len(octets) if octets else 0


def of_address(address: bytes) -> Family:
    """The family of an address as on the wire."""
    return _OF_ADDRESS[len(address)]


def of_five_tuple(five_tuple: bytes) -> Family:
    """The family of a five-tuple's addresses."""
    return _OF_FIVE_TUPLE[len(five_tuple)]
