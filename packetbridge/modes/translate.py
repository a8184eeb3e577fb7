"""The same segment on the other side: addresses, ports, numbers, clocks and windows.

client → server: dst → server; ack, SACK blocks −= seq_delta; TSecr −= ts_delta.
server → client: src → VIP; seq += seq_delta; TSval += ts_delta; window rescaled.

Everything else, ECN bits, urgent pointers, the client's numbers and so the
server's SACK and D-SACK blocks, is the same on both sides. Checksums are
patched by what changed (RFC 1624), so what arrived damaged leaves damaged.

Source: RFC 9293 §3.1; RFC 7323 §2.3, §3.2; RFC 2018 §3.
Twin:   packetbridge/offload/bpf/translate.h
"""

import struct

from common.verdict import DropReason
from common.wire import Malformed, icmp, ipv4, options, tcp
from common.wire.checksum import change, change_at, checksum, patch, word_sum
from common.wire.seq import MASK
from common.wire.tcp import ACK, Segment
from packetbridge.config import Service
from packetbridge.flows import BridgeFlow

SPORT_OFF, DPORT_OFF = tcp.TCP_OFF, tcp.TCP_OFF + 2
_TIMESTAMPS_ALONE_LEN = 12  # options of this length have no room for SACK blocks beside timestamps
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class ServiceState:
    """A service's constant changes, reckoned once.

    bridge: the bridge's own address, 4 octets.
    """

    def __init__(self, config: Service, bridge: bytes) -> None:
        self.config = config
        self.vip = config.vip.packed
        self.server = config.server.packed
        self.vip_port = _U16.pack(config.port)
        self.server_port = _U16.pack(config.server_port)
        self.server_end = self.server + self.server_port
        self.to_server = ipv4.Rewrite(ipv4.DST_OFF, bridge, self.server, 0)
        self.to_client = ipv4.Rewrite(ipv4.SRC_OFF, self.server, self.vip, hops=0)
        self.to_vip = ipv4.Rewrite(ipv4.DST_OFF, bridge, self.vip, hops=0)
        self.port_to_server = change(config.port, config.server_port)
        self.port_to_client = change(config.server_port, config.port)


def to_server(segment: Segment, flow: BridgeFlow) -> bytes:
    """A client's segment as the server shall see it."""
    service = flow.service
    packet = bytearray(segment.packet)
    changes = service.to_server.apply(packet) + service.port_to_server
    packet[DPORT_OFF:DPORT_OFF + 2] = service.server_port
    if segment.flags & ACK:
        ack = segment.ack - flow.seq_delta & MASK
        _U32.pack_into(packet, tcp.ACK_OFF, ack)
        changes += change(segment.ack, ack)
        if segment.ts_off and flow.ts_delta:
            changes += _add_at(packet, segment.ts_off + 4, -flow.ts_delta)
        options_len = segment.payload_off - tcp.OPTIONS_OFF
        if options_len > _TIMESTAMPS_ALONE_LEN or (options_len and not segment.ts_off):
            changes += _shift_sack(packet, segment.payload_off, -flow.seq_delta)
    if flow.client_wscale:
        window = min(segment.window << flow.client_wscale, 0xFFFF)
        _U16.pack_into(packet, tcp.WINDOW_OFF, window)
        changes += change(segment.window, window)
    return _finish(packet, changes)


def to_client(segment: Segment, flow: BridgeFlow) -> bytes:
    """A server's segment as the client shall see it."""
    service = flow.service
    packet = bytearray(segment.packet)
    seq = segment.seq + flow.seq_delta & MASK
    changes = (
        service.to_client.apply(packet) + service.port_to_client + change(segment.seq, seq)
    )
    packet[SPORT_OFF:SPORT_OFF + 2] = service.vip_port
    _U32.pack_into(packet, tcp.SEQ_OFF, seq)
    if segment.ts_off and flow.ts_delta:
        changes += _add_at(packet, segment.ts_off, flow.ts_delta)
    if flow.server_wscale != flow.advertised_wscale:
        # rounded down: never more than the server has; a client that reads 0 probes
        window = min(segment.window << flow.server_wscale >> flow.advertised_wscale, 0xFFFF)
        _U16.pack_into(packet, tcp.WINDOW_OFF, window)
        changes += change(segment.window, window)
    return _finish(packet, changes)


def error_to_server(quote: icmp.Quote, flow: BridgeFlow) -> bytes:
    """An ICMP error about a packet that the client should have got, told to the server.

    Raises: Malformed(BAD_CHECKSUM) where the error arrived damaged.
    """
    service = flow.service
    packet = bytearray(quote.packet)
    if word_sum(packet[icmp.ICMP_OFF:]) != 0xFFFF:
        raise Malformed(DropReason.BAD_CHECKSUM)
    service.to_server.apply(packet)
    quoted = packet[icmp.QUOTE_OFF:]
    ipv4.Rewrite(ipv4.SRC_OFF, service.vip, service.server, hops=0).apply(quoted)
    quoted[SPORT_OFF:SPORT_OFF + 2] = service.server_port
    _add_at(quoted, tcp.SEQ_OFF, -flow.seq_delta)
    packet[icmp.QUOTE_OFF:] = quoted
    tsval_off = quote.tsval_off
    if tsval_off and flow.ts_delta:
        _add_at(packet, tsval_off, -flow.ts_delta)
    _U16.pack_into(packet, icmp.CHECKSUM_OFF, 0)
    _U16.pack_into(packet, icmp.CHECKSUM_OFF, checksum(packet[icmp.ICMP_OFF:]))
    return bytes(packet)


def _add_at(packet: bytearray, off: int, addend: int) -> int:
    """Add to the 32 bits at `off`, modulo 2**32, and return the checksum's change."""
    old = _U32.unpack_from(packet, off)[0]
    new = old + addend & MASK
    _U32.pack_into(packet, off, new)
    return change_at(off, old, new)


def _shift_sack(packet: bytearray, payload_off: int, addend: int) -> int:
    """Shift both edges of every SACK block."""
    off, count = options.sack_blocks(packet, tcp.OPTIONS_OFF, payload_off)
    return sum(_add_at(packet, off + 4 * edge, addend) for edge in range(2 * count))


def _finish(packet: bytearray, changes: int) -> bytes:
    field = _U16.unpack_from(packet, tcp.CHECKSUM_OFF)[0]
    _U16.pack_into(packet, tcp.CHECKSUM_OFF, patch(field, changes))
    return bytes(packet)
