"""Properties of both data paths: nothing raises, state is bounded, and every octet arrives once."""

import struct
from ipaddress import IPv4Address
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer import config as balancer_config
from balancer import handshake
from balancer.datapath import Datapath as Balancer
from balancer.request import KeySpec
from common import checksum, cookie
from common.cookie import Offer, Secrets
from common.verdict import DropReason, Event
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment
from packetbridge import config as bridge_config
from packetbridge.datapath import Datapath as Bridge

SECRETS = Secrets(bytes(range(16)))
VIP, BRIDGE, SERVER = (IPv4Address(f"192.168.33.{host}") for host in (10, 20, 30))
CLIENT = IPv4Address("192.168.33.1").packed
START_MS = 1_700_000_010_000
MAX_FLOWS, HOLD_OCTETS = 8, 4000
REQUEST = b"GET /a/rather/long/path?q=1 HTTP/1.1\r\nHost: shop.example.net\r\nX: y\r\n\r\n"


def balancer(key: str = "http.host+path") -> Balancer:
    backends = tuple(balancer_config.Backend(number, BRIDGE + number - 1) for number in (1, 2, 3))
    service = balancer_config.Service(
        name="web", vip=VIP, port=80, dscp=3, key=KeySpec.parse(key), backends=backends,
    )
    config = balancer_config.Config(
        services=(service,), max_flows=MAX_FLOWS, hold_octets_total=HOLD_OCTETS
    )
    return Balancer(config, SECRETS, random=Random(1))


def bridge() -> Bridge:
    service = bridge_config.Service(
        name="web", dscp=3, vip=VIP, port=80, server=SERVER, server_port=8080
    )
    config = bridge_config.Config(services=(service,), address=BRIDGE, max_flows=MAX_FLOWS)
    return Bridge(config, SECRETS, random=Random(1))


def cookie_of(port: int, isn: int, now_ms: int) -> int:
    five_tuple = CLIENT + VIP.packed + struct.pack("!HH", port, 80)
    return cookie.encode(SECRETS, five_tuple, isn, cookie.epoch_at(now_ms), Offer(1460, True, 7))


# --- whatever comes ---

PORT = st.integers(40000, 40011)
ISN = st.sampled_from([0, 7, 0xFFFFFFF0])
OCTETS = st.binary(max_size=30) | st.sampled_from([REQUEST, REQUEST[:9], REQUEST[9:], b"\x16\x03"])


@st.composite
def plausible(draw: st.DrawFn, destination: IPv4Address, tos: int) -> bytes:
    """A packet of a client's with numbers near those of a handshake of ours, or of a server's."""
    port, isn = draw(PORT), draw(ISN)
    base = cookie_of(port, isn, START_MS)
    five_tuple = CLIENT + destination.packed + struct.pack("!HH", port, 80)
    if draw(st.integers(0, 4)) == 0:
        five_tuple = SERVER.packed + CLIENT + struct.pack("!HH", 8080, port)
        base, isn = isn, draw(st.integers(0, 2**32 - 1))
    tsecr = draw(st.sampled_from([0, handshake.clock(START_MS), 1 << 24, 2 << 24 | 9, 2**32 - 1]))
    layout = draw(st.sampled_from([
        b"", options.emit(Options(timestamps=(5, tsecr))), b"\x01\x01\x05\x0a" + bytes(8),
        b"\x08\x0a" + bytes(8) + b"\x05\x0a", b"\x05\x03\x01\0",
    ]))
    return tcp.emit(
        five_tuple, isn + draw(st.sampled_from([0, 1, 2, 10, 3000, 2**31])),
        base + draw(st.sampled_from([0, 1, 2, 5000])),
        draw(st.sampled_from([SYN, ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN | ACK, 0, 255])),
        window=draw(st.integers(0, 65535)), option_octets=layout, payload=draw(OCTETS), tos=tos,
    )


@st.composite
def spoilt(draw: st.DrawFn, packets: st.SearchStrategy[bytes]) -> bytes:
    """A packet with an octet changed, cut short, or within an ICMP error."""
    packet = bytearray(draw(packets))
    match draw(st.integers(0, 5)):
        case 0:
            packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
        case 1:
            del packet[draw(st.integers(0, len(packet))):]
        case 2:
            error = struct.pack("!BBHI", draw(st.sampled_from([3, 8, 11, 12])), 4, 0, 1300)
            message = bytearray(error + packet[12:20] + packet[:draw(st.integers(0, 60))])
            packet[9], packet[20:] = 1, message
            packet[2:4] = len(packet).to_bytes(2)
    return bytes(packet)


def sequences(destination: IPv4Address, tos: int) -> st.SearchStrategy[list[tuple[int, bytes]]]:
    """Packets with the time since the last one, which may be less than none."""
    wait_ms = st.sampled_from([0, 0, 1, 100, 1000, 5000, 70_000, 10**6, -5000])
    packets = spoilt(plausible(destination, tos)) | st.binary(max_size=80)
    return st.lists(st.tuples(wait_ms, packets), max_size=25)


def check_sent(packet: bytes) -> None:
    """Its checksums hold, if they held before it was changed; its length is its header's."""
    assert int.from_bytes(packet[2:4]) == len(packet)
    assert checksum.checksum(packet[:20]) == 0


@settings(max_examples=300, deadline=None)
@given(sequences(VIP, 0))
def test_nothing_that_comes_to_the_balancer_breaks_it(packets: list[tuple[int, bytes]]) -> None:
    datapath, now_ms = balancer(), START_MS
    for wait_ms, packet in packets:
        now_ms += wait_ms
        sound = len(packet) >= 20 and checksum.checksum(packet[:20]) == 0

        verdict = datapath.on_packet(packet, now_ms)
        sent = [*verdict.packets, *datapath.on_tick(now_ms)]

        assert verdict.reason is not DropReason.INTERNAL_ERROR
        for made in sent if sound else ():
            check_sent(made)
        assert len(datapath.flows) <= MAX_FLOWS
        assert datapath.holds.octets <= HOLD_OCTETS + 2000
        (service,) = datapath.services.values()
        assert sum(backend.flows for backend in service.backends.values()) == len(datapath.flows)
        assert datapath.deliveries.octets <= HOLD_OCTETS


@settings(max_examples=300, deadline=None)
@given(sequences(BRIDGE, 3 << 2))
def test_nothing_that_comes_to_the_bridge_breaks_it(packets: list[tuple[int, bytes]]) -> None:
    datapath, now_ms = bridge(), START_MS
    for wait_ms, packet in packets:
        now_ms += wait_ms
        sound = len(packet) >= 20 and checksum.checksum(packet[:20]) == 0

        verdict = datapath.on_packet(packet, now_ms)
        sent = [*verdict.packets, *datapath.on_tick(now_ms)]

        for made in sent if sound else ():
            check_sent(made)
        assert len(datapath.flows) <= MAX_FLOWS
        held = sum(flow.replay.octets for flow in datapath.flows if flow.replay)
        assert datapath.held_octets == held


@settings(max_examples=200, deadline=None)
@given(st.lists(plausible(BRIDGE, 3 << 2), max_size=20), st.integers(1, 2**24 - 1))
def test_without_the_secret_nothing_opens_a_flow(packets: list[bytes], guess: int) -> None:
    """Tagged packets of any kind, with a MAC that is not the secret's, reach no server."""
    datapath = bridge()
    for packet in packets:
        forged = bytearray(packet)
        old, field = int.from_bytes(packet[28:32]), int.from_bytes(packet[36:38])
        ack = old + (guess << 8) & 0xFFFFFFFF
        forged[28:32] = ack.to_bytes(4)
        forged[36:38] = checksum.patch(field, checksum.change(old, ack)).to_bytes(2)

        verdict = datapath.on_packet(bytes(forged), START_MS)

        assert verdict.reason is not Event.REPLAYED
        assert len(datapath.flows) == 0


# --- every octet arrives once ---


class Server:
    """A server's end of one connection, behind a bridge: reassembles what it is sent."""

    ISN = 0x7000_0000

    def __init__(self) -> None:
        self.client_isn: int | None = None
        self.stream: dict[int, int] = {}

    def on_segment(self, segment: Segment) -> bytes | None:
        """Take a segment. Returns: the SYN-ACK, or nothing."""
        if segment.flags & SYN:
            assert self.client_isn in (None, segment.seq)
            self.client_isn = segment.seq
            stamps = segment.timestamps
            answer = Options(1460, True, (900, stamps[0]) if stamps else None, 7)
            return tcp.emit(tcp.reverse(segment.five_tuple), self.ISN, segment.seq + 1, SYN | ACK,
                            window=65535, option_octets=options.emit(answer))
        assert segment.checksum_holds()
        assert segment.ack == self.ISN + 1
        assert self.client_isn is not None
        start = segment.seq - self.client_isn - 1 & 0xFFFFFFFF
        for offset, octet in enumerate(segment.payload, start):
            assert self.stream.setdefault(offset, octet) == octet
        return None

    def received(self) -> bytes:
        """The stream up to the first gap."""
        octets = bytearray()
        while len(octets) in self.stream:
            octets.append(self.stream[len(octets)])
        return bytes(octets)


class Path:
    """A client's segments through balancer and bridges to servers, one for each backend."""

    def __init__(self) -> None:
        self.balancer = balancer()
        self.bridge = bridge()
        self.server = Server()
        self.backends: set[bytes] = set()
        self.acknowledged = 0
        self.now_ms = START_MS

    def send(self, packet: bytes, client_isn: int) -> None:
        """One packet of the client's."""
        self.now_ms += 1
        for made in self.balancer.on_packet(packet, self.now_ms).packets:
            if made[16:20] == CLIENT:
                acknowledged = Segment(made).ack - client_isn - 1 & 0xFFFFFFFF
                assert acknowledged <= len(REQUEST)
                self.acknowledged = max(self.acknowledged, acknowledged)
            else:
                self._to_bridge(made)

    def _to_bridge(self, packet: bytes) -> None:
        self.backends.add(packet[16:20])
        tagged = bytearray(packet)
        tagged[16:20] = BRIDGE.packed  # one bridge stands for all
        difference = checksum.change(
            int.from_bytes(packet[16:20]), int.from_bytes(BRIDGE.packed)
        )
        for off in (10, tcp.CHECKSUM_OFF):
            field = checksum.patch(int.from_bytes(tagged[off:off + 2]), difference)
            tagged[off:off + 2] = field.to_bytes(2)
        waiting = list(self.bridge.on_packet(bytes(tagged), self.now_ms).packets)
        while waiting:
            made = waiting.pop(0)
            if made[16:20] == SERVER.packed:
                answer = self.server.on_segment(Segment(made))
                if answer:
                    waiting += self.bridge.on_packet(answer, self.now_ms).packets


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, len(REQUEST) - 1), max_size=25, unique=True).map(sorted),
    st.randoms(use_true_random=False), st.booleans(), st.sampled_from([5, 0xFFFFFFF0]),
)
def test_a_request_arrives_whole_however_it_is_cut_mixed_and_repeated(
    cuts: list[int], random: Random, timestamps: bool, client_isn: int
) -> None:
    """Segments reordered, repeated and lost at random, sent again until all is acknowledged or
    the server has it: it reads just the request, at the backend that the whole would have had."""
    port = 40000
    five_tuple = CLIENT + VIP.packed + struct.pack("!HH", port, 80)
    t0 = handshake.clock(START_MS)
    stamps = options.emit(Options(timestamps=(77, t0))) if timestamps else b""
    isn = cookie_of(port, client_isn, START_MS)
    edges = [0, *cuts, len(REQUEST)]
    packets = [
        tcp.emit(five_tuple, client_isn + 1 + start, isn + 1, ACK | PSH, window=502,
                 option_octets=stamps, payload=REQUEST[start:end])
        for start, end in pairwise(edges)
    ]
    whole = Path()
    whole.send(tcp.emit(five_tuple, client_isn + 1, isn + 1, ACK | PSH, window=502,
                        option_octets=stamps, payload=REQUEST), client_isn)

    path = Path()
    for _ in range(6):
        mixed = random.sample(packets, len(packets)) + random.choices(packets, k=3)
        for packet in mixed:
            if random.random() < 0.8:
                path.send(packet, client_isn)
    for packet in packets:  # what a patient client ends with
        start = struct.unpack_from("!I", packet, 24)[0] - client_isn - 1 & 0xFFFFFFFF
        if start + len(Segment(packet).payload) > path.acknowledged:
            path.send(packet, client_isn)

    assert whole.server.received() == REQUEST
    assert path.server.received() == REQUEST
    assert path.backends == whole.backends
