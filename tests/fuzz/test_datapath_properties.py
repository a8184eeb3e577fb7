"""Both data paths together: what a client writes is what its server reads, at the right backend."""

from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.config import Hold
from balancer.keys.request import KeySpec
from common.verdict import DropReason, Event
from common.wire import checksum, five_tuple, options, tcp
from common.wire.options import Options
from common.wire.seq import add, delta
from common.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment
from tests.fuzz import datapaths
from tests.fuzz.datapaths import BACKENDS, BRIDGE, CLIENT, DSCP, REQUEST, SERVER, START_MS, VIP
from tests.fuzz.packets import faults
from tests.golden.payloads import client_hello, records

PORT = 40000
CLIENT_CLOCK = 77
ANSWER = b"200"
HELLO = records(client_hello(share_len=300, name_last=True), 100, 333)
STREAMS = {REQUEST: KeySpec("http.host+path"), HELLO: KeySpec("tls.sni")}
_PATIENCE_MS, _PATIENT_ROUNDS = 250, 40  # longer than the last repetition of a delivery


@dataclass
class Server:
    """A server's end of one connection: it acknowledges what it reads, and answers the whole."""

    awaited: bytes
    client_isn: int | None = None
    isn: int = 0xFFFF_FFF0
    stream: dict[int, int] = field(default_factory=dict)

    def on_segment(self, segment: Segment) -> bytes | None:
        """Take a segment. Returns: what it sends."""
        assert faults(segment.octets) == []
        if segment.flags & SYN:
            assert self.client_isn in (None, segment.seq)
            self.client_isn = segment.seq
            return self._send(segment, self.isn, 0, SYN | ACK)
        assert self.client_isn is not None
        assert delta(segment.ack, self.isn) in (1, 1 + len(ANSWER))
        start = delta(segment.seq, self.client_isn + 1)
        for offset, octet in enumerate(segment.payload, start):
            assert self.stream.setdefault(offset, octet) == octet
        received = self.received()
        if not segment.payload_len:
            return None
        answer = ANSWER if received == self.awaited else b""
        return self._send(segment, self.isn + 1, len(received), ACK, answer)

    def received(self) -> bytes:
        """The stream up to the first gap."""
        octets = bytearray()
        while len(octets) in self.stream:
            octets.append(self.stream[len(octets)])
        return bytes(octets)

    def _send(
        self, segment: Segment, seq: int, read_len: int, flags: int, payload: bytes = b""
    ) -> bytes:
        assert self.client_isn is not None
        stamps = segment.timestamps
        echo = (900, stamps[0]) if stamps else None
        answered = Options(1460, True, echo, 7) if flags & SYN else Options(timestamps=echo)
        return tcp.emit(
            five_tuple.reverse(segment.five_tuple), seq, add(self.client_isn, 1 + read_len), flags,
            window=65535, option_octets=options.emit(answered), payload=payload,
        )


class Path:
    """One client's connection through a balancer and a bridge to a server at each backend.

    lost: which of the packets from the balancer to bridges never arrive.
    """

    def __init__(
        self, stream: bytes, client_isn: int, *, timestamps: bool, lost: frozenset[int]
    ) -> None:
        self.stream, self.client_isn = stream, client_isn
        self.cookie_isn = datapaths.cookie_of(PORT, client_isn, START_MS)
        self.now_ms = START_MS
        self.balancer = datapaths.balancer(key=STREAMS[stream], hold=Hold(), hold_octets=60_000)
        self.bridges = {address.packed: datapaths.bridge(address) for address in BACKENDS}
        self.servers = {address.packed: Server(stream) for address in BACKENDS}
        self.chosen: list[bytes] = []  # the backend of each packet, also of those that get lost
        self.acknowledged = 0
        self.echo = datapaths.handshake(PORT, client_isn, START_MS).t0
        self._timestamps = timestamps
        self._lost = lost

    def write(self, start: int, end: int) -> None:
        """The client sends some of its stream."""
        self._send(add(self.client_isn, 1 + start), 0, self.stream[start:end])

    def wait(self, wait_ms: int) -> None:
        """Time passes at all of them."""
        self.now_ms += wait_ms
        for packet in self.balancer.on_tick(self.now_ms):
            self._from_balancer(packet)
        for address, bridge in self.bridges.items():
            for packet in bridge.on_tick(self.now_ms):
                self._from_bridge(packet, address)

    def _send(self, seq: int, acked: int, payload: bytes) -> None:
        self.now_ms += 1
        stamps = Options(timestamps=(CLIENT_CLOCK, self.echo)) if self._timestamps else Options()
        packet = tcp.emit(
            datapaths.ends(PORT), seq, self.cookie_isn + 1 + acked, ACK | PSH, window=502,
            option_octets=options.emit(stamps), payload=payload,
        )
        for made in self.balancer.on_packet(packet, self.now_ms).packets:
            self._from_balancer(made)

    def _from_balancer(self, packet: bytes) -> None:
        if packet[16:20] == CLIENT:
            self._to_client(tcp.checked(packet))
            return
        self.chosen.append(packet[16:20])
        if len(self.chosen) - 1 not in self._lost:
            self._to_bridge(packet, packet[16:20])

    def _to_bridge(self, packet: bytes, address: bytes) -> None:
        for made in self.bridges[address].on_packet(packet, self.now_ms).packets:
            self._from_bridge(made, address)

    def _from_bridge(self, packet: bytes, address: bytes) -> None:
        if packet[16:20] == CLIENT:
            self._to_client(tcp.checked(packet))
            return
        assert packet[16:20] == SERVER.packed
        sent = self.servers[address].on_segment(tcp.checked(packet))
        if sent is not None:
            self._to_bridge(sent, address)

    def _to_client(self, segment: Segment) -> None:
        assert faults(segment.octets) == []
        assert segment.five_tuple == five_tuple.reverse(datapaths.ends(PORT))
        assert segment.flags == ACK
        assert segment.seq == add(self.cookie_isn, 1)
        acknowledged = delta(segment.ack, self.client_isn + 1)
        assert acknowledged <= len(self.stream)
        self.acknowledged = max(self.acknowledged, acknowledged)
        if segment.payload:
            assert segment.payload == ANSWER
            if segment.timestamps:
                self.echo = segment.timestamps[0]
            self._send(add(self.client_isn, 1 + len(self.stream)), len(ANSWER), b"")


@st.composite
def ways(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """A stream, and the octets from and to of each segment that it is cut into."""
    stream = draw(st.sampled_from(list(STREAMS)))
    cuts = draw(st.lists(st.integers(1, len(stream) - 1), max_size=25, unique=True))
    return stream, list(pairwise([0, *sorted(cuts), len(stream)]))


@settings(max_examples=150, deadline=None)
@given(ways(), st.integers(0, 2**32).map(Random), st.booleans(),
       st.sampled_from([5, 0xFFFFFFF0]), st.frozensets(st.integers(0, 12), max_size=4))
def test_a_stream_arrives_whole_however_it_is_cut_mixed_lost_and_repeated(
    way: tuple[bytes, list[tuple[int, int]]], random: Random, timestamps: bool, client_isn: int,
    lost: frozenset[int],
) -> None:
    """The client repeats what nobody acknowledged, the balancer what it acknowledged itself: the
    server reads just the stream, at the backend that the whole in one segment would have had."""
    stream, pieces = way
    whole = Path(stream, client_isn, timestamps=timestamps, lost=frozenset())
    whole.write(0, len(stream))

    path = Path(stream, client_isn, timestamps=timestamps, lost=lost)
    for _ in range(3):
        mixed = random.sample(pieces, len(pieces)) + random.choices(pieces, k=3)
        for start, end in mixed:
            if random.random() < 0.8:
                path.write(start, end)
    for _ in range(_PATIENT_ROUNDS):
        for start, end in pieces:
            if end > path.acknowledged:
                path.write(start, end)
        path.wait(_PATIENCE_MS)

    (backend,) = set(whole.chosen)
    assert set(path.chosen) == {backend}
    assert whole.servers[backend].received() == path.servers[backend].received() == stream
    assert path.acknowledged == len(stream)
    split = path.balancer.modes["split"]
    assert split.deliveries.octets == split.holds.octets == 0
    assert path.bridges[backend].splice.held_octets == 0


def held_request(*, client_isn: int = 7) -> tuple[datapaths.Balancer, int]:
    """A balancer that holds the first 30 octets of a request, and their cookie_isn."""
    datapath, cookie_isn = datapaths.balancer(), datapaths.cookie_of(PORT, client_isn, START_MS)
    first = tcp.emit(datapaths.ends(PORT), client_isn + 1, cookie_isn + 1, ACK | PSH,
                     payload=REQUEST[:30])
    assert datapath.on_packet(first, START_MS).reason is Event.HELD
    return datapath, cookie_isn


@pytest.mark.parametrize("start", [0, 5, 30])
def test_what_arrives_damaged_is_neither_held_nor_acknowledged(start: int) -> None:
    """Its client would never send it again, and it would leave under a right checksum."""
    datapath, cookie_isn = held_request()
    damaged = bytearray(tcp.emit(datapaths.ends(PORT), 8 + start, cookie_isn + 1, ACK | PSH,
                                 payload=REQUEST[start:start + 30]))
    damaged[50] ^= 1
    rest = tcp.emit(datapaths.ends(PORT), 38, cookie_isn + 1, ACK | PSH, payload=REQUEST[30:])

    verdict = datapath.on_packet(bytes(damaged), START_MS)
    handoff = datapath.on_packet(rest, START_MS)

    assert verdict.reason is DropReason.BAD_CHECKSUM
    assert b"".join(tcp.checked(packet).payload for packet in handoff.packets) == REQUEST


@given(st.integers(1, 2**32 - 1), st.integers(0, 100), st.binary(min_size=1, max_size=30))
def test_held_segments_are_of_one_connection(shift: int, start: int, payload: bytes) -> None:
    """Who cannot see the cookie cannot put octets between a client's own (RFC 5961 §5)."""
    datapath, cookie_isn = held_request()
    rest = tcp.emit(datapaths.ends(PORT), 38, cookie_isn + 1, ACK | PSH, payload=REQUEST[30:])
    stray = tcp.emit(datapaths.ends(PORT), 9 + start, add(cookie_isn, 1 + shift), ACK | PSH,
                     payload=payload)

    datapath.on_packet(stray, START_MS)
    handoff = datapath.on_packet(rest, START_MS)

    assert b"".join(tcp.checked(packet).payload for packet in handoff.packets) == REQUEST


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2**24 - 1), st.sampled_from([ACK, ACK | PSH, ACK | FIN, RST | ACK, PSH]),
       st.binary(max_size=9), st.booleans())
def test_without_the_secret_nothing_opens_a_flow(
    guess: int, flags: int, payload: bytes, at_bridge: bool
) -> None:
    """The MAC of a cookie is not the secret's."""
    datapath = datapaths.bridge() if at_bridge else datapaths.balancer()
    forged = add(datapaths.cookie_of(PORT, 7, START_MS), guess << 8)
    packet = tcp.emit(datapaths.ends(PORT, BRIDGE if at_bridge else VIP), 8, forged + 1, flags,
                      payload=payload, tos=DSCP << 2)

    verdict = datapath.on_packet(packet, START_MS)

    assert not verdict.packets
    assert len(datapath.flows) == 0


@given(st.integers(0, 255), st.binary(min_size=1, max_size=90))
def test_a_handoff_is_the_clients_segment_but_for_five_fields(
    tos: int, path: bytes
) -> None:
    """Destination, DSCP, TTL, TSecr and the checksums."""
    five_tuple, made_for = datapaths.ends(PORT), datapaths.handshake(PORT, 7, START_MS)
    packet = tcp.emit(
        five_tuple, 8, made_for.cookie_isn + 1, ACK | PSH, tos=tos,
        option_octets=options.emit(Options(timestamps=(CLIENT_CLOCK, made_for.t0))),
        payload=b"GET /" + path + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    )

    (made,) = datapaths.balancer().on_packet(packet, START_MS + 5).packets

    address, backend_id = made[16:20], made[48]
    assert address == BACKENDS[backend_id - 1].packed
    assert made[1] == DSCP << 2 | tos & 3
    assert int.from_bytes(made[48:52]) == made_for.handed(address, backend_id << 24)
    assert checksum.checksum(made[:20]) == 0
    assert faults(made) == []
    same = bytearray(made)
    for start, end in ((1, 2), (8, 9), (10, 12), (16, 20), (36, 38), (48, 52)):
        same[start:end] = packet[start:end]
    assert bytes(same) == packet
