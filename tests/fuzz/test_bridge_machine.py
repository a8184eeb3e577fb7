"""The bridge under whatever comes, in any order and at any time: bounds, and what it sends."""

import struct

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.cluster import cookie
from common.cluster.cookie import Offer
from common.flow.unknown import UnknownFlows
from common.verdict import Event, Verdict
from common.wire import five_tuple, options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment
from tests.fuzz import datapaths
from tests.fuzz.datapaths import (
    BRIDGE,
    CLIENT,
    DSCP,
    MAX_FLOWS,
    REQUEST,
    SERVER,
    SERVER_PORT,
    VIP,
    VIP_PORT,
)
from tests.fuzz.packets import U8, U16, U32, faults, fragments, icmp_error, mended

TOS = DSCP << 2 | 1
PORTS = st.integers(40000, 40009)
ISNS = st.sampled_from([7, 0xFFFFFFF0])
WHICH = st.integers(0, 5)  # counted from the latest
FROM_END = st.integers(0, 120).map(lambda number: 120 - number)  # at first, nothing is changed
MAX_UNKNOWN = 4
SERVER_END = SERVER.packed + SERVER_PORT.to_bytes(2)
WAITS_MS = st.sampled_from([1, 100, 1000, 3000, 15_000, 64_000, 130_000, 10**6])


class Bridge(RuleBasedStateMachine):
    """One service; balancers that hand over, forgers that would like to, and a wayward server."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = datapaths.START_MS
        self.datapath = datapaths.bridge()
        self.datapath.splice.unknown = UnknownFlows(MAX_UNKNOWN)
        self.issued: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (cookie, epoch) of each
        self.handshakes: list[tuple[int, int, int]] = []  # port and both isns
        self.came: list[bytes] = []
        self.clients = {CLIENT}
        self.damaged: set[bytes] = set()  # the clients' ends of what came with a wrong checksum

    # --- what comes ---

    @rule(port=PORTS, client_isn=ISNS, start=st.sampled_from([0, 0, 0, 0, 5]),
          flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, RST | ACK]), length=st.integers(0, 70),
          timestamps=st.booleans(), wscale=st.none() | st.integers(0, 14),
          forged=st.integers(0, 5))
    def handoff(self, port: int, client_isn: int, start: int, flags: int, length: int,
                timestamps: bool, wscale: int | None, forged: int) -> None:
        """What follows a cookie, or, forged, seems to."""
        offer = Offer(1460, True, wscale)
        cookie_isn = datapaths.cookie_of(port, client_isn, self.now_ms, offer)
        if not forged:
            cookie_isn ^= 0x0100_0000
        else:
            epoch = cookie.epoch_at(self.now_ms)
            self.issued.setdefault((port, client_isn), []).append((cookie_isn >> 8, epoch))
        self.handshakes.append((port, client_isn, cookie_isn))
        echo = datapaths.handshake(port, client_isn, self.now_ms, offer).handed(BRIDGE.packed)
        stamps = options.emit(Options(timestamps=(78, echo))) if timestamps else b""
        count = len(self.datapath.flows)

        self._give(tcp.emit(
            datapaths.ends(port, BRIDGE), client_isn + 1 + start, cookie_isn + 1, flags, tos=TOS,
            window=502, option_octets=stamps, payload=REQUEST[:length],
        ))

        if not forged:
            assert len(self.datapath.flows) <= count

    @precondition(lambda self: self.handshakes)
    @rule(which=WHICH, seq=st.integers(0, 200), acked=st.sampled_from([0, 1, 1000]),
          flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, RST, RST | ACK]),
          sack=st.booleans(), length=st.integers(0, 30))
    def from_client(self, which: int, seq: int, acked: int, flags: int, sack: bool,
                    length: int) -> None:
        port, client_isn, cookie_isn = self._handshake(which)
        blocks = options.emit_sack([(cookie_isn + 9 & 0xFFFFFFFF, cookie_isn + 19 & 0xFFFFFFFF)])

        self._give(tcp.emit(
            datapaths.ends(port, BRIDGE), client_isn + 1 + seq, cookie_isn + 1 + acked, flags,
            option_octets=blocks if sack else b"", window=502, payload=REQUEST[:length], tos=TOS,
        ))

    @precondition(lambda self: self.handshakes)
    @rule(which=WHICH, server_isn=st.sampled_from([0, 0xFFFFFFFF, 77]), acked=st.integers(0, 1),
          flags=st.sampled_from([SYN | ACK] * 3 + [SYN, RST | ACK, ACK]),
          timestamps=st.booleans(), wscale=st.none() | U8)
    def answer(self, which: int, server_isn: int, acked: int, flags: int, timestamps: bool,
               wscale: int | None) -> None:
        """What a server makes of a SYN."""
        port, client_isn, _ = self._handshake(which)
        answered = Options(1460, True, (900, 78) if timestamps else None, wscale)

        self._give(tcp.emit(
            SERVER_END[:4] + CLIENT + SERVER_END[4:] + port.to_bytes(2), server_isn,
            client_isn + 2 - acked, flags, window=9, option_octets=options.emit(answered),
        ))

    @precondition(lambda self: self.handshakes)
    @rule(which=WHICH, wscale=st.none() | st.integers(0, 14), timestamps=st.booleans())
    def open(self, which: int, wscale: int | None, timestamps: bool) -> None:
        """A whole handshake: handoff, SYN and answer."""
        port, client_isn, _ = self._handshake(which)
        self.handoff(port, client_isn, 0, ACK | PSH, 9, timestamps, wscale, 1)
        self.answer(0, 0xFFFFFFFF, 1, SYN | ACK, timestamps, wscale)

    @precondition(lambda self: any(flow.is_open for flow in self.datapath.flows))
    @rule(which=WHICH, seq=st.integers(0, 99), window=U16, length=st.integers(0, 30),
          flags=st.sampled_from([ACK, ACK, ACK | PSH, ACK | FIN, RST]))
    def reply(self, which: int, seq: int, window: int, length: int, flags: int) -> None:
        """A server's segment of an open flow, and the client's acknowledgment of it."""
        flows = [flow for flow in self.datapath.flows if flow.is_open]
        flow = flows[which % len(flows)]
        packet = tcp.emit(five_tuple.reverse(flow.key),
                          flow.cookie_isn - flow.seq_delta + 1 + seq, flow.client_next, flags,
                          window=window, payload=bytes(length))

        made = tcp.checked(self._give(packet).packets[0])
        back = self._give(tcp.emit(
            made.packet.dst + BRIDGE.packed + made.dport + made.sport,
            made.ack, made.seq + length, ACK, tos=TOS,
        ))

        assert made.seq == flow.cookie_isn + 1 + seq & 0xFFFFFFFF
        assert tcp.checked(back.packets[0]).ack == tcp.checked(packet).seq + length & 0xFFFFFFFF

    @rule(port=PORTS, seq=U32, ack=U32, flags=U8, window=U16, length=st.integers(0, 30))
    def from_server(self, port: int, seq: int, ack: int, flags: int, window: int,
                    length: int) -> None:
        """Anything else from it."""
        self._give(tcp.emit(
            SERVER_END[:4] + CLIENT + SERVER_END[4:] + port.to_bytes(2), seq, ack, flags,
            window=window, payload=bytes(length),
        ))

    @rule(octets=st.binary(max_size=80), addressed=st.booleans(), tcp_alike=st.booleans())
    def noise(self, octets: bytes, addressed: bool, tcp_alike: bool) -> None:
        noise = bytearray(octets)
        if addressed and len(noise) >= 24:
            noise[1], noise[16:20], noise[22:24] = TOS, BRIDGE.packed, VIP_PORT.to_bytes(2)
        if tcp_alike and noise:
            noise[0] = 0x45
            noise[9:10] = b"\x06"
        self._give(bytes(noise))

    @precondition(lambda self: self.came)
    @rule(which=WHICH)
    def repeat(self, which: int) -> None:
        self._give(self._earlier(which))

    @precondition(lambda self: self.came)
    @rule(which=WHICH, off=FROM_END, octet=U8, length=FROM_END,
          mend=st.booleans(), padding=st.binary(max_size=6))
    def again(self, which: int, off: int, octet: int, length: int, mend: bool,
              padding: bytes) -> None:
        """What came before, with an octet changed, cut short or padded."""
        packet = bytearray(self._earlier(which))
        if off < len(packet):
            packet[off] = octet
        if mend:
            self._give(mended(bytes(packet[:20 + length])) + padding)
        else:
            self._give(bytes(packet[:20 + length]) + padding)

    @precondition(lambda self: self.came)
    @rule(which=WHICH, size=st.sampled_from([16, 32]))
    def in_fragments(self, which: int, size: int) -> None:
        packet = self._earlier(which)
        if faults(packet):
            return

        pieces = fragments(packet, size)
        for piece in pieces:
            verdict = self._give(piece)
            assert not verdict.packets or len(pieces) == 1

    @precondition(lambda self: self.handshakes)
    @rule(which=WHICH, kind=st.sampled_from([0, 3, 5, 8, 11, 12]), length=st.integers(20, 60),
          seq=U32, stamps=st.sampled_from([b"", b"\x01\x01\x08\x0a" + bytes(8),
                                           b"\x08\x0a" + bytes(8) + b"\1\1"]))
    def icmp(self, which: int, kind: int, length: int, seq: int, stamps: bytes) -> None:
        """An error about what the VIP sent to a client."""
        port, *_ = self._handshake(which)
        ends = five_tuple.reverse(datapaths.ends(port))
        quoted = tcp.emit(ends, seq, 2, ACK, option_octets=stamps)
        packet = icmp_error(kind, b"\x0a\0\0\x01", BRIDGE.packed, quoted[:length], TOS)
        if not len(quoted[:length]) > 0:
            return

        verdict = self._give(packet)

        for made in verdict.packets:
            assert made[8:9] + made[20:22] == bytes([packet[8] - 1]) + packet[20:22]
            assert made[40:44] == SERVER.packed
            assert made[48:50] == SERVER_PORT.to_bytes(2)

    @rule(wait_ms=WAITS_MS, backwards=st.integers(0, 5))
    def wait(self, wait_ms: int, backwards: int) -> None:
        """Time passes, or jumps back."""
        self.now_ms += wait_ms if backwards else -wait_ms
        before = list(self.datapath.flows)

        for made in self.datapath.on_tick(self.now_ms):
            self._check_sent(made)

        assert all(flow in before for flow in self.datapath.flows)

    # --- what must hold ---

    def _handshake(self, which: int) -> tuple[int, int, int]:
        return self.handshakes[-1 - which % len(self.handshakes)]

    def _earlier(self, which: int) -> bytes:
        return self.came[-1 - which % len(self.came)]

    def _give(self, packet: bytes) -> Verdict:
        self.came.append(packet)
        from_server = packet[12:16] + packet[20:22] == SERVER_END
        if from_server:
            self.clients.add(packet[16:20])
        elif packet[16:20] == BRIDGE.packed:
            self.clients.add(packet[12:16])
        if faults(packet[:int.from_bytes(packet[2:4])]):
            end = packet[16:20] + packet[22:24] if from_server else packet[12:16] + packet[20:22]
            self.damaged.add(end)
        before = list(self.datapath.flows)

        verdict = self.datapath.on_packet(packet, self.now_ms)

        for made in verdict.packets:
            self._check_sent(made)
        opened = [flow for flow in self.datapath.flows if flow not in before]
        assert len(opened) == (verdict.reason is Event.REPLAYED)
        for flow in opened:
            self._check_opened(flow, tcp.checked(packet), tcp.checked(verdict.packets[0]))
        return verdict

    def _check_opened(self, flow: object, segment: Segment, syn: Segment) -> None:
        """A flow has a payload and a cookie that was given out in a neighbouring epoch."""
        port, client_isn = int.from_bytes(segment.sport), segment.seq - 1 & 0xFFFFFFFF
        epoch = cookie.epoch_at(self.now_ms)
        assert segment.payload_len
        assert not segment.flags & RST
        assert "TCP checksum" not in faults(segment.octets)
        assert (syn.flags, syn.seq) == (SYN, client_isn)
        assert any(
            (segment.ack - 1 & 0xFFFFFFFF) >> 8 == given and abs(epoch - at) <= 1
            for given, at in self.issued[port, client_isn]
        )

    def _check_sent(self, made: bytes) -> None:
        if made[9] == 1:
            assert made[16:20] == SERVER.packed
            assert faults(made) in ([], ["IP checksum"])  # as it came
            return
        to_server = made[16:20] + made[22:24] == SERVER_END
        if to_server:
            assert made[12:16] in self.clients
            assert made[1] >> 2 == 0
            end = made[12:16] + made[20:22]
        else:
            assert made[12:16] + made[20:22] == VIP.packed + struct.pack("!H", VIP_PORT)
            assert made[16:20] in self.clients
            end = made[16:20] + made[22:24]
        assert made[8] > 0
        if end not in self.damaged:
            assert faults(made) == []

    @invariant()
    def state_is_bounded_and_counted(self) -> None:
        datapath = self.datapath
        replays = [flow.replay for flow in datapath.flows if flow.replay]
        assert len(datapath.flows) <= MAX_FLOWS
        assert len(datapath.splice.unknown) <= MAX_UNKNOWN
        assert datapath.splice.held_octets == sum(replay.octets for replay in replays)
        assert not any(flow.is_open and flow.replay for flow in datapath.flows)


TestBridge = Bridge.TestCase
TestBridge.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
