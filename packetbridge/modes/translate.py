"""The same segment on the other side: addresses, ports, numbers, clocks and windows.

client → server: dst → server; ack, SACK blocks −= seq_delta; TSecr −= ts_delta. What the TSecr of
                 the first segment proves is taken out before.
server → client: src → VIP; seq += seq_delta; TSval += ts_delta; window rescaled.

Everything else, ECN bits, urgent pointers, the client's numbers and so the
server's SACK and D-SACK blocks, is the same on both sides. Checksums are
patched by what changed (RFC 1624), so what arrived damaged leaves damaged.

Source: RFC 9293 §3.1; RFC 7323 §2.3, §3.2; RFC 2018 §3.
Twin:   packetbridge/offload/bpf/translate.h
"""

import struct

from common.cluster import stamps
from common.encap import Label
from common.flow.guesses import Guesses
from common.verdict import DropReason
from common.wire import Malformed, icmp, tcp
from common.wire.checksum import change, change_at
from common.wire.family import of_address
from common.wire.seq import MASK, delta
from common.wire.tcp import ACK, Segment
from packetbridge.config import Service
from packetbridge.flows import BridgeFlow

_TIMESTAMPS_ALONE_LEN = 12  # options of this length have no room for SACK blocks beside timestamps
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")


class ServiceState:
    """A service's constant changes, reckoned once. label: what its packets come with.

    guesses: at handshakes of its clients.
    """

    def __init__(self, config: Service, label: Label) -> None:
        self.config = config
        self.guesses = Guesses()
        self.vip = config.vip.packed
        self.server = config.server.packed
        self.vip_port = config.endpoint.port_octets
        self.server_port = _U16.pack(config.server_port)
        self.server_end = self.server + self.server_port
        family = of_address(self.vip)
        self.to_server = label.rewrite_to(self.server, hops=1)
        self.to_client = family.rewrite_src(self.server, self.vip)
        self.to_vip = label.rewrite_to(self.vip, hops=0)
        self.quoted_to_server = family.rewrite_src(self.vip, self.server)
        self.changes_to_server = (
            self.to_server.changes + change(config.port, config.server_port)
        )
        self.changes_to_client = (
            self.to_client.changes + change(config.server_port, config.port)
        )

    def is_like(self, service: Service) -> bool:
        """Whether flows need not notice if the service is configured like that."""
        return (self.vip, self.config.port, self.config.dscp, self.server_end) == (
            service.vip.packed, service.port, service.dscp,
            service.server.packed + _U16.pack(service.server_port))

    def key_of(self, client: bytes, port: bytes) -> bytes:
        """The key of the flow of a client's address and port: the five-tuple to the server."""
        return client + self.server + port + self.server_port


def to_server(segment: Segment, flow: BridgeFlow) -> bytes:
    """A client's segment as the server shall see it."""
    service = flow.service
    octets = bytearray(segment.octets)
    off = segment.off
    service.to_server.apply(octets)
    changes = service.changes_to_server
    octets[off + tcp.DPORT_OFF:off + tcp.SEQ_OFF] = service.server_port
    if segment.flags & ACK:
        ack = segment.ack - flow.seq_delta & MASK
        _U32.pack_into(octets, off + tcp.ACK_OFF, ack)
        changes += change(segment.ack, ack)
        if segment.ts_off:
            if delta(segment.seq, 1) == flow.client_isn:
                changes += _strip_at(octets, segment.ts_off + 4)
            if flow.ts_delta:
                changes += _add_at(octets, segment.ts_off + 4, -flow.ts_delta)
        options_len = segment.payload_off - segment.options_off
        if options_len > _TIMESTAMPS_ALONE_LEN or (options_len and not segment.ts_off):
            changes += _shift_sack(octets, segment, -flow.seq_delta)
    if flow.client_wscale:
        window = min(segment.window << flow.client_wscale, 0xFFFF)
        _U16.pack_into(octets, off + tcp.WINDOW_OFF, window)
        changes += change(segment.window, window)
    tcp.patch_checksum(octets, off, changes)
    return bytes(octets)


def to_client(segment: Segment, flow: BridgeFlow) -> bytes:
    """A server's segment as the client shall see it."""
    service = flow.service
    octets = bytearray(segment.octets)
    off = segment.off
    seq = segment.seq + flow.seq_delta & MASK
    service.to_client.apply(octets)
    changes = service.changes_to_client + change(segment.seq, seq)
    octets[off:off + tcp.DPORT_OFF] = service.vip_port
    _U32.pack_into(octets, off + tcp.SEQ_OFF, seq)
    if segment.ts_off and flow.ts_delta:
        changes += _add_at(octets, segment.ts_off, flow.ts_delta)
    if flow.server_wscale != flow.advertised_wscale:
        # rounded down: never more than the server has; a client that reads 0 probes
        window = min(segment.window << flow.server_wscale >> flow.advertised_wscale, 0xFFFF)
        _U16.pack_into(octets, off + tcp.WINDOW_OFF, window)
        changes += change(segment.window, window)
    tcp.patch_checksum(octets, off, changes)
    return bytes(octets)


def error_to_server(quote: icmp.Quote, flow: BridgeFlow) -> bytes:
    """An ICMP error about a packet that the client should have got, told to the server.

    Raises: Malformed(BAD_CHECKSUM) where the error arrived damaged.
    """
    service = flow.service
    if not quote.checksum_holds():
        raise Malformed(DropReason.BAD_CHECKSUM)
    octets = bytearray(quote.octets)
    service.to_server.apply(octets)
    quoted = octets[quote.quoted_off:]
    service.quoted_to_server.apply(quoted)
    octets[quote.quoted_off:] = quoted
    off = quote.tcp_off
    octets[off:off + tcp.DPORT_OFF] = service.server_port
    _add_at(octets, off + tcp.SEQ_OFF, -flow.seq_delta)
    tsval_off = quote.tsval_off
    if tsval_off and flow.ts_delta:
        _add_at(octets, tsval_off, -flow.ts_delta)
    icmp.renew_checksum(octets, quote.off)
    return bytes(octets)


def _add_at(octets: bytearray, off: int, addend: int) -> int:
    """Add to the 32 bits at `off`, modulo 2**32, and return the checksum's change."""
    old = _U32.unpack_from(octets, off)[0]
    new = old + addend & MASK
    _U32.pack_into(octets, off, new)
    return change_at(off, old, new)


def _strip_at(octets: bytearray, off: int) -> int:
    """Take the MAC out of the handoff's TSecr at `off`, and return the checksum's change."""
    old = _U32.unpack_from(octets, off)[0]
    new = stamps.stripped(old)
    _U32.pack_into(octets, off, new)
    return change_at(off, old, new)


def _shift_sack(octets: bytearray, segment: Segment, addend: int) -> int:
    """Shift both edges of every SACK block."""
    off, count = segment.sack_blocks()
    return sum(_add_at(octets, off + 4 * edge, addend) for edge in range(2 * count))
