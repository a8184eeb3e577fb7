"""Sees whether packets that a doctor announces arrive, as they arrive: before any rule of the host.

A packet socket that is there while something is watched for, which is seconds. It is for all
protocols: one for IPv4 alone would keep connections from being adopted (docs/operations.md).
"""

import socket
from typing import NamedTuple

from common.cluster.probe import Sighting
from common.engine import socket_filter
from common.engine.socket_filter import EQUALS, LOAD_HALF, LOAD_OCTET, LOAD_WORD
from common.wire.family import look, stated_len
from common.wire.packet import TCP
from common.wire.tcp import dport_of, sport_of

LASTS_S = 3.0  # longer than a doctor waits for a handoff (balancer/doctor/handoffs.py)
MOST = 16
_MOST_SEEN = 255
_MOST_READ = 64
_ETH_P_ALL, _ETH_P_IP = 0x0003, 0x0800  # linux/if_ether.h
_SO_RCVBUF_OCTETS = 1 << 18
_SNAP_LEN = 64
_PROTOCOL_AD = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL, linux/filter.h
_PROTOCOL_OFF, _SOURCE_OFF, _DESTINATION_OFF, _SPORT_OFF = 9, 12, 16, 20


class Ends(NamedTuple):
    """From where, to which port."""

    address: bytes
    port: int
    to_port: int


class Tap:
    """Watches for packets to the bridge's own address. own: 4 octets."""

    def __init__(self, interface: str, own: bytes) -> None:
        self._interface = interface
        self._own = own
        self._socket: socket.socket | None = None
        self._seen: dict[Ends, Sighting] = {}
        self._ends_s: dict[Ends, float] = {}

    def look_out(self, ends: Ends, now_s: float) -> Sighting:
        """What has been seen since the first call for these. Raises: OSError."""
        self.expire(now_s)
        if ends not in self._seen:
            if len(self._seen) >= MOST:
                return Sighting()
            self._seen[ends] = Sighting()
            self._open()
        self._ends_s[ends] = now_s + LASTS_S
        self._read()
        return self._seen[ends]

    def expire(self, now_s: float) -> None:
        """Look out no longer for what nobody asks for any more."""
        for ends in [ends for ends, end_s in self._ends_s.items() if end_s <= now_s]:
            del self._seen[ends], self._ends_s[ends]
        if not self._seen:
            self.close()

    @property
    def deadline_s(self) -> float | None:
        """When `expire` has something to do."""
        return min(self._ends_s.values(), default=None)

    def close(self) -> None:
        """Look out for nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        """Have a socket that hears what is watched for. What an earlier one heard is read."""
        self._read()
        made = self._socket or socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        sources = sorted({ends.address for ends in self._seen})
        socket_filter.attach(made, [
            (LOAD_HALF, 0, 0, _PROTOCOL_AD), (EQUALS, 0, len(sources) + 5, _ETH_P_IP),
            (LOAD_OCTET, 0, 0, _PROTOCOL_OFF), (EQUALS, 0, len(sources) + 3, TCP),
            (LOAD_WORD, 0, 0, _DESTINATION_OFF),
            (EQUALS, 0, len(sources) + 1, int.from_bytes(self._own)),
            (LOAD_WORD, 0, 0, _SOURCE_OFF), *socket_filter.one_of(sources, _SNAP_LEN),
        ])
        if self._socket is None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SO_RCVBUF_OCTETS)
            made.bind((self._interface, _ETH_P_ALL))
            self._socket = made

    def _read(self) -> None:
        for _ in range(_MOST_READ if self._socket else 0):
            assert self._socket is not None
            try:
                octets, (*_, kind, _, _) = self._socket.recvfrom(_SNAP_LEN)
            except OSError:  # no more, or the interface has gone
                return
            if kind != socket.PACKET_OUTGOING:
                self._note(octets)

    def _note(self, octets: bytes) -> None:
        if len(octets) < _SPORT_OFF + 4:
            return
        packet = look(octets + bytes(max(0, stated_len(octets) - len(octets))))  # it is cut
        if packet.fault is not None or packet.protocol != TCP:
            return
        ends = Ends(packet.src, int.from_bytes(sport_of(packet)), int.from_bytes(dport_of(packet)))
        if ends in self._seen:
            packets = min(self._seen[ends].packets + 1, _MOST_SEEN)
            self._seen[ends] = Sighting(packets, packet.tos, packet.ttl)
