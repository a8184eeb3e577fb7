"""ARP for IPv4 on Ethernet: whole frames.

Source: RFC 826; RFC 5227 §1.1 (probe, announcement).
"""

import struct
from typing import NamedTuple

ETHERTYPE = 0x0806
SENDER_OFF = 28  # of the sender's IPv4 address in a frame
FRAME_LEN = 42
REQUEST = 1
_BROADCAST, _NOBODY, _ANY = b"\xff" * 6, bytes(6), bytes(4)
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_HEAD = (1, 0x0800, 6, 4)  # Ethernet, IPv4, the lengths of their addresses


class Arp(NamedTuple):
    """What a frame says. mac: 6 octets; sender, target: IPv4 addresses."""

    operation: int
    mac: bytes
    sender: bytes
    target: bytes


def parse(frame: bytes) -> Arp | None:
    """A frame's ARP; None if it is none for IPv4 on Ethernet."""
    if len(frame) < FRAME_LEN:
        return None
    _, _, kind, *head, operation, mac, sender, _, target = _FRAME.unpack_from(frame)
    if kind != ETHERTYPE or tuple(head) != _HEAD:
        return None
    return Arp(operation, mac, sender, target)


def probe(mac: bytes, address: bytes) -> bytes:
    """Asks who has an address, and says nothing of who asks (RFC 5227 §2.1.1)."""
    return _request(mac, _ANY, address)


def announcement(mac: bytes, address: bytes) -> bytes:
    """Tells all that an address is at `mac` now (RFC 5227 §2.3)."""
    return _request(mac, address, address)


def _request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    return _FRAME.pack(_BROADCAST, mac, ETHERTYPE, *_HEAD, REQUEST, mac, sender, _NOBODY, target)
