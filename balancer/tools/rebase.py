"""A capture of another server's traffic, numbered as if the balancer had answered it.

In such a capture the clients acknowledge the numbers of a server that is not
us, so no segment follows a cookie of ours. This wrapper of a data path sees
both SYN-ACKs, the captured one and ours, and moves the clients' ack, SACK
blocks and TSecr by the difference. Either SYN-ACK may come first, and again: a
client repeats its SYN, and a capture of two interfaces may have the answer
before the question. What belongs together is told by the client's ISN. It
serves `balancer replay` alone; traffic that a balancer with the same secret
answered already fits, and is not touched.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from balancer.config import Config
from balancer.datapath import Datapath
from common.capture.replay import segment_in
from common.cluster import stamps
from common.cluster.service import TCP_OCTET, key_of
from common.verdict import Event, Verdict
from common.wire import five_tuple, tcp
from common.wire.seq import add, delta
from common.wire.tcp import ACK, SYN, Segment

_U32 = struct.Struct("!I")


class _Answer(NamedTuple):
    """A SYN-ACK's numbers. tsval: None without timestamps."""

    isn: int
    tsval: int | None

    @classmethod
    def of(cls, syn_ack: Segment) -> "_Answer":
        return cls(syn_ack.seq, syn_ack.timestamps[0] if syn_ack.timestamps else None)


@dataclass(slots=True)
class _Connection:
    """One client's connection: our SYN-ACK's numbers, and what to add to the captured ones.

    is_handed_off: from then on the shifts stay, whatever SYN comes again.
    """

    client_isn: int
    answer: _Answer
    ack_shift: int = 0
    ts_shift: int = 0
    is_handed_off: bool = False

    def fit(self, captured: _Answer) -> None:
        """Move the client's numbers from another server's SYN-ACK to ours."""
        self.ack_shift = delta(self.answer.isn, captured.isn)
        if self.answer.tsval is not None and captured.tsval is not None:
            self.ts_shift = delta(self.answer.tsval, captured.tsval)


class Rebased:
    """A data path whose clients' numbers are moved first.

    All connections are kept in memory: captures are finite.
    """

    def __init__(self, datapath: Datapath, config: Config) -> None:
        self._datapath = datapath
        self._services = {
            service.endpoint.packed for service in config.services
        }
        self._connections: dict[bytes, _Connection] = {}
        self._captured: dict[tuple[bytes, int], _Answer] = {}  # by five-tuple and client's ISN
        self._renumbered: set[tuple[bytes, int]] = set()

    @property
    def connections(self) -> int:
        """How many had to be renumbered."""
        return len(self._renumbered)

    def on_tick(self, now_ms: int) -> list[bytes]:
        """As the data path."""
        return self._datapath.on_tick(now_ms)

    def on_packet(self, octets: bytes, now_ms: int) -> Verdict:
        """As the data path, for the packet with its numbers moved."""
        segment = segment_in(octets)
        if segment is None:
            return self._datapath.on_packet(octets, now_ms)
        if key_of(segment.packet.src, TCP_OCTET, segment.sport) in self._services:
            self._on_captured_server(segment)
            return self._datapath.on_packet(octets, now_ms)
        key = segment.five_tuple
        connection = self._connections.get(key)
        if connection is not None and connection.ack_shift and not segment.flags & SYN:
            octets = _moved(segment, connection)
        verdict = self._datapath.on_packet(octets, now_ms)
        if verdict.reason is Event.SYN_ANSWERED:
            self._on_syn(segment, tcp.checked(verdict.packets[0]))
        elif verdict.reason is Event.HANDOFF and connection is not None and connection.ack_shift:
            self._on_handoff(segment, tcp.checked(verdict.packets[0]), connection)
        return verdict

    def _on_syn(self, syn: Segment, syn_ack: Segment) -> None:
        """A connection begins; or its SYN comes again, whose answer is the one that counts."""
        key = syn.five_tuple
        known = self._connections.get(key)
        if known is not None and known.client_isn == syn.seq and known.is_handed_off:
            return
        self._connections[key] = _Connection(syn.seq, _Answer.of(syn_ack))
        self._fit(key)

    def _on_captured_server(self, segment: Segment) -> None:
        """Learn from the captured SYN-ACK by how much it differs from ours."""
        if segment.flags & (SYN | ACK) == SYN | ACK:
            key = five_tuple.reverse(segment.five_tuple)
            self._captured[key, delta(segment.ack, 1)] = _Answer.of(segment)
            self._fit(key)

    def _fit(self, key: bytes) -> None:
        """Let a client's numbers fit as soon as both SYN-ACKs are known."""
        connection = self._connections.get(key)
        if connection is None or connection.is_handed_off:
            return
        captured = self._captured.get((key, connection.client_isn))
        if captured is None:
            return
        connection.fit(captured)
        if connection.ack_shift:
            self._renumbered.add((key, connection.client_isn))

    @staticmethod
    def _on_handoff(captured: Segment, sent: Segment, connection: _Connection) -> None:
        """From now on the server's clock counts from what the handoff told the bridge."""
        connection.is_handed_off = True
        if captured.timestamps and sent.timestamps:
            connection.ts_shift = delta(
                stamps.stripped(sent.timestamps[1]), captured.timestamps[1])


def _moved(segment: Segment, connection: _Connection) -> bytes:
    """The client's segment with ack, SACK blocks and TSecr moved, and a checksum to fit."""
    octets = bytearray(segment.octets)
    offs = [segment.off + tcp.ACK_OFF] if segment.flags & ACK else []
    blocks_off, blocks = segment.sack_blocks()
    offs += [blocks_off + 4 * edge for edge in range(2 * blocks)]
    for off in offs:
        _U32.pack_into(octets, off, add(_U32.unpack_from(octets, off)[0], connection.ack_shift))
    if segment.ts_off and segment.flags & ACK:
        off = segment.ts_off + 4
        _U32.pack_into(octets, off, add(_U32.unpack_from(octets, off)[0], connection.ts_shift))
    return tcp.renew_checksum(octets)
