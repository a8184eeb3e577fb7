"""A stand-in for the server whose packets a capture does not have.

A capture at a backend's interface shows handoffs and replies, but not what
passes inside the host between bridge and server. This wrapper of a data path
answers each replayed SYN with the numbers that the capture's replies have, and
takes the replies back to what the server must have sent. It serves
`packetbridge replay` alone.
"""

import struct

from common.verdict import Event, Verdict, send
from common.wire import Malformed, ipv4, options, tcp
from common.wire.checksum import checksum
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
            service.vip.packed + _U16.pack(service.port):
                service.server.packed + _U16.pack(service.server_port)
            for service in config.services
        }
        self._wscales = {
            self._server_ends[service.vip.packed + _U16.pack(service.port)]: service.wscale
            for service in config.services
        }
        self.answers = 0

    def on_tick(self, now_ms: int) -> list[bytes]:
        """As the data path."""
        return self._datapath.on_tick(now_ms)

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict:
        """As the data path, for a reply as its server sent it, and with handshakes answered."""
        server_end = self._server_ends.get(packet[12:16] + packet[20:22])
        if server_end is not None:
            packet = _from_server(packet, server_end)
        verdict = self._datapath.on_packet(packet, now_ms)
        if verdict.reason is not Event.REPLAYED:
            return verdict
        self.answers += 1
        answer = self._answer(Segment(packet), Segment(verdict.packets[-1]))
        opened = self._datapath.on_packet(answer, now_ms)
        return send(Event.REPLAYED, *verdict.packets, *opened.packets)

    def _answer(self, handoff: Segment, syn: Segment) -> bytes:
        """A SYN-ACK with the numbers that the client was promised, so that nothing is shifted."""
        offered = options.parse(syn.packet, tcp.OPTIONS_OFF, syn.payload_off)
        timestamps = None
        if offered.timestamps and handoff.timestamps:
            timestamps = (handoff.timestamps[1], offered.timestamps[0])
        five_tuple = tcp.reverse(syn.five_tuple)
        wscale = self._wscales[five_tuple[:4] + five_tuple[8:10]]
        answered = Options(offered.mss, offered.sack, timestamps,
                           None if offered.wscale is None else wscale)
        return tcp.emit(
            five_tuple, delta(handoff.ack, 1), add(syn.seq, 1), SYN | ACK,
            window=_WINDOW, option_octets=options.emit(answered),
        )


def _from_server(packet: bytes, server_end: bytes) -> bytes:
    """A captured reply with its server's address and port, and a checksum to fit.

    A SYN-ACK from the VIP is the balancer's, and none of the server's.
    """
    try:
        segment = Segment(packet)
    except Malformed:
        return packet
    if packet[ipv4.PROTOCOL_OFF] != ipv4.PROTOCOL_TCP or segment.flags & SYN:
        return packet
    sent = bytearray(segment.packet)
    ipv4.Rewrite(ipv4.SRC_OFF, packet[12:16], server_end[:4], hops=0).apply(sent)
    sent[tcp.TCP_OFF:tcp.TCP_OFF + 2] = server_end[4:]
    _U16.pack_into(sent, tcp.CHECKSUM_OFF, 0)
    pseudo = ipv4.pseudo_sum(server_end[:4], packet[16:20], ipv4.PROTOCOL_TCP,
                             len(sent) - tcp.TCP_OFF)
    _U16.pack_into(sent, tcp.CHECKSUM_OFF, checksum(sent[tcp.TCP_OFF:], pseudo))
    return bytes(sent)
