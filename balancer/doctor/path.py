"""What can be seen of the network without the bridges: who answers, and how wide the paths are."""

import os
import select
import socket
import struct
import time
from collections.abc import Iterable

from balancer.measure import Measurement
from balancer.paths import Paths
from balancer.routes import Table
from common.wire.checksum import checksum

PATIENCE_S = 0.4
_TRIES = 2
_ECHO_REQUEST, _ECHO_REPLY = 8, 0  # RFC 792
_ECHO = struct.Struct("!BBHHH")
_IPV4_HEADER_LEN = 20
_ETH_P_ARP = 0x0806  # linux/if_ether.h
_ETHERNET = 1  # linux/if_arp.h
_ARP = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826
_ARP_OFF, _MAC_LEN = 14, 6


def pings(address: str) -> bool:
    """Whether a host answers an echo request. Raises: OSError without the right to ask."""
    number = os.getpid() & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as made:
        for turn in range(_TRIES):
            head = _ECHO.pack(_ECHO_REQUEST, 0, 0, number, turn)
            try:
                made.sendto(_ECHO.pack(_ECHO_REQUEST, 0, checksum(head), number, turn),
                            (address, 0))
            except OSError:
                return False
            if _hears(made, address, number):
                return True
    return False


def _hears(made: socket.socket, address: str, number: int) -> bool:
    end_s = time.monotonic() + PATIENCE_S
    while (left_s := end_s - time.monotonic()) > 0 and select.select([made], [], [], left_s)[0]:
        octets, (source, _) = made.recvfrom(128)
        if source == address and len(octets) >= _IPV4_HEADER_LEN + _ECHO.size:
            kind, _, _, got, _ = _ECHO.unpack_from(octets, _IPV4_HEADER_LEN)
            if (kind, got) == (_ECHO_REPLY, number):
                return True
    return False


def others_with(interface: str, vips: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    """Which hosts of the network have the VIPs: VIP and Ethernet address (RFC 5227 §2.1.1).

    Raises: OSError.
    """
    asked = dict.fromkeys(vips)
    found: dict[tuple[bytes, bytes], None] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP)) as link:
        link.bind((interface, _ETH_P_ARP))
        *_, kind, own = link.getsockname()
        if kind != _ETHERNET or len(own) != _MAC_LEN:
            return []
        for _ in range(_TRIES):
            try:
                for vip in asked:
                    link.send(b"\xff" * _MAC_LEN + own + b"\x08\x06" + _ARP.pack(
                        _ETHERNET, 0x0800, _MAC_LEN, 4, 1, own, bytes(4), bytes(_MAC_LEN), vip))
            except OSError:  # the interface is down: there is no way to anybody
                return []
            found |= dict.fromkeys(_heard(link, set(asked), own))
    return list(found)


def _heard(link: socket.socket, asked: set[bytes], own: bytes) -> list[tuple[bytes, bytes]]:
    """Who has said within a while that he has one of the addresses asked for."""
    found = []
    end_s = time.monotonic() + PATIENCE_S / 2
    while (left_s := end_s - time.monotonic()) > 0 and select.select([link], [], [], left_s)[0]:
        frame = link.recv(256)
        if len(frame) >= _ARP_OFF + _ARP.size:
            *_, mac, address, _, _ = _ARP.unpack_from(frame, _ARP_OFF)
            if address in asked and mac != own:
                found.append((address, mac))
    return found


def measured(addresses: Iterable[bytes], interface: str) -> Paths:
    """The ways to the bridges, and how wide they are. Raises: OSError."""
    paths = Paths(addresses)
    paths.set_routes(Table(interface).look_up(paths, probe=False))
    measurement = Measurement(paths)
    measurement.on_deadline()
    end_s = time.monotonic() + PATIENCE_S
    while (left_s := end_s - time.monotonic()) > 0:
        select.select([measurement], [], [], left_s)
        measurement.on_ready()
    return paths
