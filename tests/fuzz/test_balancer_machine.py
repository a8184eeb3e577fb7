"""The balancer under whatever comes, in any order and at any time: bounds, and what it sends."""

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balancer.datapath import Datapath
from balancer.flows import TAKEN_OVER
from balancer.modes.split.hold import Held
from balancer.modes.split.mode import Split
from common.cluster import cookie
from common.flow.unknown import UnknownFlows
from common.verdict import Event, Verdict
from common.wire import five_tuple, options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, FIN, PSH, RST, SYN
from tests.fuzz import datapaths
from tests.fuzz.datapaths import BACKENDS, DSCP, HOLD, HOLD_OCTETS, MAX_FLOWS, REQUEST, VIP
from tests.fuzz.packets import U8, U16, U32, faults, fragments, icmp_error, mended

PORTS = st.integers(40000, 40009)
ISNS = st.sampled_from([7, 0xFFFFFFF0])
BACKEND_ADDRESSES = {address.packed for address in BACKENDS}
MAX_UNKNOWN = 4
MAX_MADE = 1500  # the service's MSS and its headers
LAYOUTS = (b"", b"\x05\x03\x01\0", b"\x01\x01\x05\x0a" + bytes(8), b"\x08\x0a" + bytes(8) + b"\1\1")
WHICH = st.integers(0, 5)  # counted from the latest
FROM_END = st.integers(0, 120).map(lambda number: 120 - number)  # at first, nothing is changed
WAITS_MS = st.sampled_from([1, 100, 999, 1000, 3000, 5000, 64_000, 130_000, 10**6])


class Balancer(RuleBasedStateMachine):
    """One service; many clients, some of whom write what they like."""

    datapath: Datapath
    split: Split

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = datapaths.START_MS
        self.issued: dict[tuple[bytes, int], list[tuple[int, int]]] = {}  # (cookie, epoch) of each
        self.handshakes: list[tuple[bytes, int, int, int]] = []  # five-tuple, both isns, T0
        self.written: dict[tuple[bytes, int, int, int], int] = {}
        self.came: list[bytes] = []
        self.clients: set[bytes] = set()
        self.damaged: set[bytes] = set()  # the five-tuples of what came with a wrong checksum

    @initialize(policy=st.sampled_from(["hash", "reset"]))
    def start(self, policy: str) -> None:
        self.datapath = datapaths.balancer(hold=replace(HOLD, policy=policy))
        self.split = datapaths.split_of(self.datapath)
        self.split.unknown = UnknownFlows(MAX_UNKNOWN)

    # --- what comes ---

    @rule(port=PORTS, client_isn=ISNS, timestamps=st.booleans(), mss=st.none() | U16,
          wscale=st.none() | U8)
    def syn(self, port: int, client_isn: int, timestamps: bool, mss: int | None,
            wscale: int | None) -> None:
        """A handshake. It costs no state."""
        offer = Options(mss, True, (77, 0) if timestamps else None, wscale)
        five_tuple = datapaths.ends(port)
        state = self._state()

        verdict = self._give(
            tcp.emit(five_tuple, client_isn, 0, SYN, option_octets=options.emit(offer))
        )

        answer = tcp.checked(verdict.packets[0])
        assert (answer.flags, answer.ack) == (SYN | ACK, client_isn + 1 & 0xFFFFFFFF)
        assert self._state() == state
        epoch = cookie.epoch_at(self.now_ms)
        self.issued.setdefault((five_tuple, client_isn), []).append((answer.seq >> 8, epoch))
        t0 = answer.timestamps[0] if answer.timestamps else 0
        self.handshakes.append((five_tuple, client_isn, answer.seq, t0))

    @precondition(lambda self: self.handshakes)
    @rule(which=WHICH, length=st.sampled_from([1, 7, 20, len(REQUEST)]))
    def more(self, which: int, length: int) -> None:
        """The next octets of a client's request, as if all before had arrived."""
        connection = self.handshakes[-1 - which % len(self.handshakes)]
        start = self.written.get(connection, 0)
        self.written[connection] = min(start + length, len(REQUEST))

        self._write(which, start, REQUEST[start:start + length], ACK | PSH)

    @precondition(lambda self: self.handshakes)
    @rule(which=WHICH, start=st.integers(0, len(REQUEST)) | st.just(0),
          length=st.integers(0, 30) | st.just(len(REQUEST)),
          flags=st.sampled_from([ACK, ACK | PSH, ACK | PSH, ACK | FIN, RST, RST | ACK]),
          acked=st.sampled_from([0, 0, 0, 100]))
    def data(self, which: int, start: int, length: int, flags: int, acked: int) -> None:
        """Some of a request, or an end, within one of the handshakes."""
        self._write(which, start, REQUEST[start:start + length], flags, acked)

    @precondition(lambda self: self.came)
    @rule(which=WHICH)
    def repeat(self, which: int) -> None:
        self._give(self._earlier(which))

    @rule(port=PORTS, seq=U32, ack=U32, flags=U8, layout=st.sampled_from(LAYOUTS),
          named=st.integers(0, 127), payload=st.binary(max_size=20))
    def stray(self, port: int, seq: int, ack: int, flags: int, layout: bytes, named: int,
              payload: bytes) -> None:
        """A sound segment of no handshake. It may name a backend."""
        stamps = options.emit(Options(timestamps=(5, named << 24 | 9)))

        self._give(tcp.emit(datapaths.ends(port), seq, ack, flags & ~SYN,
                            option_octets=layout or stamps, payload=payload))

    @rule(port=PORTS, named=st.integers(1, 3), step=st.integers(0, 100_000))
    def of_another_balancer(self, port: int, named: int, step: int) -> None:
        """What goes on from packet to packet, of a flow that another balancer began."""
        stamps = options.emit(Options(timestamps=(5, (named << 24) + len(self.came))))
        self._give(tcp.emit(datapaths.ends(port), 5, 7_000_000 * port + step, ACK,
                            option_octets=stamps))

    @rule(octets=st.binary(max_size=80), addressed=st.booleans(), tcp_alike=st.booleans())
    def noise(self, octets: bytes, addressed: bool, tcp_alike: bool) -> None:
        noise = bytearray(octets)
        if addressed and len(noise) >= 24:
            noise[16:20], noise[22:24] = VIP.packed, datapaths.VIP_PORT.to_bytes(2)
        if tcp_alike and noise:
            noise[0] = 0x45
            noise[9:10] = b"\x06"
        self._give(bytes(noise))

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

    @precondition(lambda self: self.came)
    @rule(which=WHICH, kind=st.sampled_from([0, 3, 5, 8, 11, 12]),
          length=st.integers(0, 60), tsval=st.integers(0, 4).map(lambda number: number << 24))
    def icmp(self, which: int, kind: int, length: int, tsval: int) -> None:
        """An error about what the VIP's backend might have sent to the source of an earlier one."""
        packet = self._earlier(which)
        if len(packet) < 24:
            return
        quoted = tcp.emit(
            five_tuple.reverse(packet[12:24]), 1, 2, ACK,
            option_octets=options.emit(Options(timestamps=(tsval | 1, 3))),
        )
        self._give(icmp_error(kind, b"\x0a\0\0\x01", VIP.packed, quoted[:length]))

    @rule(wait_ms=WAITS_MS, backwards=st.integers(0, 5))
    def wait(self, wait_ms: int, backwards: int) -> None:
        """Time passes, or jumps back."""
        self.now_ms += wait_ms if backwards else -wait_ms
        before = list(self.datapath.flows)

        for made in self.datapath.on_tick(self.now_ms):
            self._check_sent(made)

        for flow in self.datapath.flows:
            assert (flow in before or flow.state == TAKEN_OVER
                    or (flow.key, flow.client_isn) in self.issued)

    # --- what must hold ---

    def _write(
        self, which: int, start: int, payload: bytes, flags: int, acked: int = 0
    ) -> None:
        five_tuple, client_isn, cookie_isn, t0 = self.handshakes[-1 - which % len(self.handshakes)]
        stamps = options.emit(Options(timestamps=(78, t0))) if t0 else b""
        self._give(tcp.emit(
            five_tuple, client_isn + 1 + start, cookie_isn + 1 + acked, flags, window=502,
            option_octets=stamps, payload=payload,
        ))

    def _earlier(self, which: int) -> bytes:
        return self.came[-1 - which % len(self.came)]

    def _give(self, packet: bytes) -> Verdict:
        self.came.append(packet)
        if packet[16:20] == VIP.packed:
            self.clients.add(packet[12:16])
        if faults(packet[:int.from_bytes(packet[2:4])]):
            self.damaged.add(packet[12:24])
        flows, held = list(self.datapath.flows), self._held()

        verdict = self.datapath.on_packet(packet, self.now_ms)

        for made in verdict.packets:
            self._check_sent(made)
        opened = [flow for flow in self.datapath.flows if flow not in flows]
        if verdict.reason is Event.TAKEOVER:
            assert [flow.state for flow in opened] in ([], [TAKEN_OVER])
            return verdict
        waiting = {each.key for each in held}
        crowded_out = [flow for flow in opened if flow.key != packet[12:24] and flow.key in waiting]
        assert len(opened) - len(crowded_out) == (verdict.reason is Event.HANDOFF)
        for flow in opened:
            first = next(made for made in map(tcp.checked, verdict.packets)
                         if made.five_tuple[:4] + made.sport == flow.key[:4] + flow.key[8:10])
            self._check_cookie(flow.key, first.seq, first.ack, flow.key in waiting)
        for each in self._held():
            if each not in held:
                self._check_cookie(each.key, each.first.seq, each.first.ack, False)
        return verdict

    def _held(self) -> list[Held]:
        return [each for _, each in self.split.holds._held.items()]

    def _check_cookie(self, key: bytes, seq: int, ack: int, waited: bool) -> None:
        """A flow follows a cookie given to this client in a neighbouring epoch.

        waited: it was checked when its first segment came.
        """
        epoch = cookie.epoch_at(self.now_ms)
        assert any(
            (ack - 1 & 0xFFFFFFFF) >> 8 == given and (waited or abs(epoch - at) <= 1)
            for given, at in self.issued[key, seq - 1 & 0xFFFFFFFF]
        )

    def _check_sent(self, made: bytes) -> None:
        assert len(made) <= MAX_MADE
        if made[16:20] not in BACKEND_ADDRESSES:
            assert made[12:16] == VIP.packed
            assert made[16:20] in self.clients - {VIP.packed}
            assert faults(made) == []
            return
        assert made[1] >> 2 == DSCP
        assert made[8] > 0
        if made[12:16] + VIP.packed + made[20:24] not in self.damaged and made[9] == 6:
            assert faults(made) == []

    def _state(self) -> tuple[int, ...]:
        split = self.split
        return len(split.flows), len(split.holds), len(split.unknown)

    @invariant()
    def state_is_bounded_and_counted(self) -> None:
        split = self.split
        held = self._held()
        assert len(split.flows) <= MAX_FLOWS
        assert len(split.unknown) <= MAX_UNKNOWN
        assert split.holds.octets == sum(each.cost for each in held) <= HOLD_OCTETS
        assert all(0 < each.octets < HOLD.octets for each in held)
        assert split.deliveries.octets <= HOLD_OCTETS
        assert all(split.deliveries.get(flow.key) for flow in split.flows if flow.goes_up)
        backends = list(self.datapath.services.backends())
        assert sum(map(split.flows.count, backends)) == len(split.flows)


TestBalancer = Balancer.TestCase
TestBalancer.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
