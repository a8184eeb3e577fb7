"""A capture of another server's traffic, numbered as if the balancer had answered it.

In such a capture the clients acknowledge the numbers of a server that is not
us, so no segment follows a cookie of ours. This wrapper of a data path sees
both SYN-ACKs, the captured one and ours, and moves the clients' ack, SACK
blocks and TSecr by the difference. It serves `balancer replay` alone; traffic
that a balancer with the same secret answered already fits, and is not touched.
"""

import struct
from dataclasses import dataclass

from balancer.config import Config
from balancer.datapath import Datapath
from common.verdict import Event, Verdict
from common.wire import Malformed, ipv4, options, tcp
from common.wire.checksum import checksum
from common.wire.seq import add, delta
from common.wire.tcp import ACK, SYN, Segment

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


@dataclass(slots=True)
class _Connection:
    """One client's connection: our SYN-ACK's numbers, and what to add to the captured ones."""

    cookie_isn: int
    tsval: int
    ack_shift: int = 0
    ts_shift: int = 0


class Rebased:
    """A data path whose clients' numbers are moved first.

    connections: how many had to be. All are kept in memory: captures are finite.
    """

    def __init__(self, datapath: Datapath, config: Config) -> None:
        self._datapath = datapath
        self._services = {
            service.vip.packed + _U16.pack(service.port) for service in config.services
        }
        self._connections: dict[bytes, _Connection] = {}
        self.connections = 0

    def on_tick(self, now_ms: int) -> list[bytes]:
        """As the data path."""
        return self._datapath.on_tick(now_ms)

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict:
        """As the data path, for the packet with its numbers moved."""
        segment = _segment(packet)
        if segment is None:
            return self._datapath.on_packet(packet, now_ms)
        if packet[12:16] + packet[20:22] in self._services:
            self._on_captured_server(segment)
            return self._datapath.on_packet(packet, now_ms)
        key = segment.five_tuple
        connection = self._connections.get(key)
        if connection is not None and connection.ack_shift and not segment.flags & SYN:
            packet = _moved(segment, connection)
        verdict = self._datapath.on_packet(packet, now_ms)
        if verdict.reason is Event.SYN_ANSWERED:
            answer = Segment(verdict.packets[0])
            self._connections[key] = _Connection(answer.seq, (answer.timestamps or (0, 0))[0])
        elif verdict.reason is Event.HANDOFF and connection is not None and connection.ack_shift:
            self._on_handoff(segment, Segment(verdict.packets[0]), connection)
        return verdict

    def _on_captured_server(self, segment: Segment) -> None:
        """Learn from the captured SYN-ACK by how much it differs from ours."""
        connection = self._connections.get(tcp.reverse(segment.five_tuple))
        if connection is None or segment.flags & (SYN | ACK) != SYN | ACK:
            return
        shift = delta(connection.cookie_isn, segment.seq)
        self.connections += bool(shift) and not connection.ack_shift
        connection.ack_shift = shift
        timestamps = segment.timestamps
        if timestamps:
            connection.ts_shift = delta(connection.tsval, timestamps[0])

    @staticmethod
    def _on_handoff(captured: Segment, sent: Segment, connection: _Connection) -> None:
        """From now on the server's clock counts from what the handoff told the bridge."""
        if captured.timestamps and sent.timestamps:
            connection.ts_shift = delta(sent.timestamps[1], captured.timestamps[1])


def _segment(packet: bytes) -> Segment | None:
    try:
        if packet[ipv4.PROTOCOL_OFF:ipv4.PROTOCOL_OFF + 1] != bytes([ipv4.PROTOCOL_TCP]):
            return None
        return Segment(packet)
    except Malformed:
        return None


def _moved(segment: Segment, connection: _Connection) -> bytes:
    """The client's segment with ack, SACK blocks and TSecr moved, and a checksum to fit."""
    packet = bytearray(segment.packet)
    offs = [tcp.ACK_OFF] if segment.flags & ACK else []
    blocks_off, blocks = options.sack_blocks(packet, tcp.OPTIONS_OFF, segment.payload_off)
    offs += [blocks_off + 4 * edge for edge in range(2 * blocks)]
    for off in offs:
        _U32.pack_into(packet, off, add(_U32.unpack_from(packet, off)[0], connection.ack_shift))
    if segment.ts_off and segment.flags & ACK:
        off = segment.ts_off + 4
        _U32.pack_into(packet, off, add(_U32.unpack_from(packet, off)[0], connection.ts_shift))
    _U16.pack_into(packet, tcp.CHECKSUM_OFF, 0)
    tcp_len = len(packet) - tcp.TCP_OFF
    pseudo = ipv4.pseudo_sum(bytes(packet[12:16]), bytes(packet[16:20]), ipv4.PROTOCOL_TCP, tcp_len)
    _U16.pack_into(packet, tcp.CHECKSUM_OFF, checksum(packet[tcp.TCP_OFF:], pseudo))
    return bytes(packet)
