"""A stand-in for the server whose packets a capture does not have.

A capture at a backend's interface shows handoffs and replies, but not what
passes inside the host between bridge and server. This wrapper of a data path
answers each replayed SYN with the numbers that the capture's replies have, and
takes the replies back to what the server must have sent. It serves
`packetbridge replay` alone.
"""

import struct

from common.capture.replay import segment_in
from common.cluster import stamps
from common.cluster.service import TCP_OCTET, key_of
from common.verdict import Event, Verdict, send
from common.wire import five_tuple, options, tcp
from common.wire.options import Options
from common.wire.seq import add, delta
from common.wire.tcp import ACK, SYN, Segment
from packetbridge.config import Config
from packetbridge.datapath import Datapath

_U16 = struct.Struct("!H")
_WINDOW = 65535


class StandIn:
    """A data path with servers in it. answers: how many handshakes they have answered."""

    def __init__(self, datapath: Datapath, config: Config) -> None:
        self._datapath = datapath
        self._server_ends = {
            service.endpoint.packed: (service.server.packed, _U16.pack(service.server_port))
            for service in config.services
        }
        self._wscales = {
            self._server_ends[service.endpoint.packed]: service.wscale
            for service in config.services
        }
        self.answers = 0

    def on_tick(self, now_ms: int) -> list[bytes]:
        """As the data path."""
        return self._datapath.on_tick(now_ms)

    def on_packet(self, octets: bytes, now_ms: int) -> Verdict:
        """As the data path, for a reply as its server sent it, and with handshakes answered."""
        segment = segment_in(octets)
        if segment is not None:
            source = key_of(segment.packet.src, TCP_OCTET, segment.sport)
            server_end = self._server_ends.get(source)
            if server_end is not None:
                octets = _from_server(segment, *server_end)
        verdict = self._datapath.on_packet(octets, now_ms)
        if verdict.reason not in (Event.REPLAYED, Event.CHECK):
            return verdict
        self.answers += 1
        answer = self._answer(tcp.checked(octets), tcp.checked(verdict.packets[-1]))
        opened = self._datapath.on_packet(answer, now_ms)
        return send(verdict.reason, *verdict.packets, *opened.packets)

    def _answer(self, handoff: Segment, syn: Segment) -> bytes:
        """A SYN-ACK with the numbers that the client was promised, so that nothing is shifted."""
        offered = syn.options()
        timestamps = None
        if offered.timestamps and handoff.timestamps:
            timestamps = (stamps.stripped(handoff.timestamps[1]), offered.timestamps[0])
        wscale = self._wscales[syn.packet.dst, syn.dport]
        answered = Options(offered.mss, offered.sack, timestamps,
                           None if offered.wscale is None else wscale)
        return tcp.emit(
            five_tuple.reverse(syn.five_tuple), delta(handoff.ack, 1), add(syn.seq, 1), SYN | ACK,
            window=_WINDOW, option_octets=options.emit(answered),
        )


def _from_server(segment: Segment, server: bytes, port: bytes) -> bytes:
    """A captured reply with its server's address and port, and a checksum to fit.

    A SYN-ACK from the VIP is the balancer's, and none of the server's.
    """
    packet = segment.packet
    sent = bytearray(segment.octets)
    if segment.flags & SYN:
        return bytes(sent)
    packet.family.rewrite_src(packet.src, server).apply(sent)
    sent[segment.off:segment.off + tcp.DPORT_OFF] = port
    return tcp.renew_checksum(sent)
