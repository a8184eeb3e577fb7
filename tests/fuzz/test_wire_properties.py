"""Properties of octets: checksums, headers, options, cookies, and translation there and back."""

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.packet import Raw

from common import checksum, cookie, seq
from common.wire import Malformed, options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, Segment
from packetbridge import config, translate
from packetbridge.flows import BridgeFlow
from packetbridge.translate import ServiceState

U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
ADDRESS = st.binary(min_size=4, max_size=4)
FLAGS = st.integers(0, 255)
SERVICE = config.Service(
    name="web", dscp=3, vip=IPv4Address("192.168.33.10"), port=80,
    server=IPv4Address("192.168.33.30"), server_port=8080,
)
BRIDGE = bytes((192, 168, 33, 20))

# The kinds of options that stacks send, and some that nobody knows.
OPTION = st.sampled_from([b"\x01", b"\x02\x04\x05\xb4", b"\x03\x03\x07", b"\x04\x02"]) | st.builds(
    lambda kind, body: bytes((kind, 2 + len(body))) + body, st.integers(6, 255),
    st.binary(max_size=6),
)
TIMESTAMPS = st.tuples(U32, U32).map(lambda pair: struct.pack("!BBII", 8, 10, *pair))
SACK = st.lists(U32, min_size=2, max_size=8).filter(lambda edges: len(edges) % 2 == 0).map(
    lambda edges: struct.pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)
)
OPTION_OCTETS = st.lists(OPTION | TIMESTAMPS | SACK, max_size=5).map(b"".join).filter(
    lambda octets: len(octets) <= 40
).map(lambda octets: octets + bytes(-len(octets) % 4))


@st.composite
def segments(draw: st.DrawFn, src: bytes | None = None, dst: bytes | None = None,
             sport: int | None = None, dport: int | None = None) -> bytes:
    """A sound segment, whatever it says."""
    five_tuple = (
        (src or draw(ADDRESS)) + (dst or draw(ADDRESS))
        + struct.pack("!HH", sport or draw(U16), dport or draw(U16))
    )
    return tcp.emit(
        five_tuple, draw(U32), draw(U32), draw(FLAGS), window=draw(U16),
        option_octets=draw(OPTION_OCTETS), payload=draw(st.binary(max_size=40)), tos=draw(U8),
    )


def holds(packet: bytes) -> bool:
    """Whether both checksums are right: with them in it, a sum is all ones."""
    pseudo = packet[12:20] + struct.pack("!HH", 6, len(packet) - 20)
    return _reference(packet[:20]) == _reference(pseudo + packet[20:]) == 0


# --- checksums ---


def _reference(octets: bytes) -> int:
    """RFC 1071 §4.1, word by word."""
    total = 0
    for word, in struct.iter_unpack("!H", octets + bytes(len(octets) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(max_size=200))
def test_a_checksum_is_the_sum_of_words(octets: bytes) -> None:
    assert checksum.checksum(octets) == _reference(octets)


@settings(max_examples=500)
@given(st.binary(min_size=24, max_size=60), st.data())
def test_a_patched_checksum_is_the_one_reckoned_anew(octets: bytes, data: st.DataObject) -> None:
    off = data.draw(st.integers(0, len(octets) - 4))
    new = data.draw(U32)
    changed = octets[:off] + new.to_bytes(4) + octets[off + 4:]
    assume(any(changed))  # no packet is all zeros, and zero has two forms

    change = checksum.change_at(off, int.from_bytes(octets[off:off + 4]), new)
    patched = checksum.patch(_reference(octets), change)

    assert patched == _reference(changed)


# --- headers and options ---


@given(segments())
def test_what_is_emitted_is_what_another_parser_reads(packet: bytes) -> None:
    segment, read = Segment(packet), IP(packet)

    assert holds(packet)
    assert segment.checksum_holds()
    assert (segment.seq, segment.ack, segment.window) == (
        read[TCP].seq, read[TCP].ack, read[TCP].window
    )
    assert segment.flags == int(read[TCP].flags)
    assert segment.payload == (bytes(read[Raw]) if Raw in read else b"")
    assert segment.five_tuple[:8] == IPv4Address(read.src).packed + IPv4Address(read.dst).packed


@given(segments(), st.binary(max_size=8))
def test_padding_of_the_link_is_no_part_of_a_segment(packet: bytes, padding: bytes) -> None:
    assert Segment(packet + padding).packet == packet


@given(segments(), st.data())
def test_a_packet_cut_short_is_malformed(packet: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(packet) - 1))

    with pytest.raises(Malformed):
        Segment(packet[:end])


@settings(max_examples=500)
@given(st.binary(max_size=80) | segments().flatmap(
    lambda packet: st.tuples(st.integers(0, len(packet) - 1), U8).map(
        lambda change: packet[:change[0]] + bytes([change[1]]) + packet[change[0] + 1:]
    )
))
def test_whatever_octets_come_only_malformed_is_raised(octets: bytes) -> None:
    try:
        segment = Segment(octets)
    except Malformed:
        return

    assert segment.payload_off + segment.payload_len == len(segment.packet) <= len(octets)
    options.parse(segment.packet, tcp.OPTIONS_OFF, segment.payload_off)
    blocks_off, blocks = options.sack_blocks(
        segment.packet, tcp.OPTIONS_OFF, segment.payload_off
    )
    assert blocks_off + 8 * blocks <= segment.payload_off


@given(st.none() | U16, st.booleans(), st.none() | st.tuples(U32, U32), st.none() | U8)
def test_options_that_are_emitted_are_read_again(
    mss: int | None, sack: bool, timestamps: tuple[int, int] | None, wscale: int | None
) -> None:
    offered = Options(mss, sack, timestamps, wscale)

    octets = options.emit(offered)

    assert len(octets) % 4 == 0
    assert options.parse(octets, 0, len(octets)) == offered


@given(U32, st.integers(-2**33, 2**33))
def test_sequence_numbers_are_a_circle(start: int, count: int) -> None:
    end = seq.add(start, count)

    assert seq.delta(end, start) == count % 2**32
    assert seq.add(end, -count) == start
    if 0 < count < 2**31:
        assert seq.before(start, end)
        assert not seq.before(end, start)


# --- cookies ---

KEY = st.binary(min_size=16, max_size=16)


@given(KEY, KEY, st.binary(min_size=12, max_size=12), U32, U32, U16, st.booleans(),
       st.none() | U8)
def test_a_cookie_holds_in_neighbouring_epochs_and_for_its_flow_alone(
    key: bytes, other_key: bytes, five_tuple: bytes, client_isn: int, epoch: int, mss: int,
    sack: bool, wscale: int | None,
) -> None:
    secrets = cookie.Secrets(key)
    made = cookie.encode(secrets, five_tuple, client_isn, epoch, cookie.Offer(mss, sack, wscale))

    assert all(
        cookie.check(secrets, five_tuple, client_isn, made, at % 2**32)
        for at in (epoch - 1, epoch, epoch + 1)
    )
    assert cookie.check(cookie.Secrets(other_key, key), five_tuple, client_isn, made, epoch)
    read = cookie.decode(made)
    assert read.sack == sack
    assert read.wscale == (None if wscale is None else min(wscale, 14))
    assert read.mss <= max(mss, min(cookie.MSS_IPV4))


def test_few_wrong_cookies_hold() -> None:
    """24 bits, three epochs: of 100,000 guesses some 0.02 are right; of other things, none here."""
    secrets, five_tuple = cookie.Secrets(bytes(16)), bytes(range(12))
    made = cookie.encode(secrets, five_tuple, 7, 1000, cookie.Offer(1460, True, 7))

    assert not cookie.check(secrets, five_tuple, 8, made, 1000)
    assert not cookie.check(secrets, five_tuple, 7, made, 1002)
    assert not cookie.check(secrets, bytes(12), 7, made, 1000)
    assert not cookie.check(cookie.Secrets(bytes(15) + b"\x01"), five_tuple, 7, made, 1000)
    assert not any(
        cookie.check(secrets, five_tuple, 7, made + (guess << 8) & 0xFFFFFFFF, 1000)
        for guess in range(1, 2000)
    )


# --- translation ---


def _flow(seq_delta: int, ts_delta: int, wscales: tuple[int, int]) -> BridgeFlow:
    flow = BridgeFlow(bytes(12), ServiceState(SERVICE, BRIDGE), 0, 0, 0)
    flow.is_open = True
    flow.seq_delta, flow.ts_delta = seq_delta, ts_delta
    flow.server_wscale, flow.advertised_wscale = wscales
    return flow


def _mirror(packet: bytes) -> bytes:
    """What the server sent, as if it had come from the client: ends, numbers and clocks swapped."""
    read = IP(packet)
    tcp_header = read[TCP]
    swapped = [
        ("Timestamp", value[::-1]) if name == "Timestamp" else (name, value)
        for name, value in tcp_header.options
    ]
    made = IP(src=read.dst, dst=str(IPv4Address(BRIDGE)), tos=read.tos, id=read.id,
              flags=read.flags, ttl=read.ttl + 1) / TCP(
        sport=tcp_header.dport, dport=SERVICE.port, seq=tcp_header.ack, ack=tcp_header.seq,
        flags=tcp_header.flags, window=tcp_header.window, options=swapped,
        urgptr=tcp_header.urgptr,
    ) / Raw(bytes(tcp_header.payload))
    return bytes(made)


@settings(max_examples=300)
@given(segments(src=SERVICE.server.packed, sport=SERVICE.server_port), U32, U32,
       st.integers(0, 14), st.integers(0, 14))
def test_what_is_sent_to_the_client_is_sound_and_differs_by_constants(
    packet: bytes, seq_delta: int, ts_delta: int, server_wscale: int, advertised_wscale: int
) -> None:
    flow = _flow(seq_delta, ts_delta, (server_wscale, advertised_wscale))
    before = Segment(packet)

    after = Segment(translate.to_client(before, flow))

    assert holds(after.packet)
    assert after.five_tuple == (
        SERVICE.vip.packed + packet[16:20] + SERVICE.port.to_bytes(2) + packet[22:24]
    )
    assert seq.delta(after.seq, before.seq) == seq_delta
    assert (after.ack, after.flags, after.payload) == (before.ack, before.flags, before.payload)
    assert after.window << advertised_wscale <= before.window << server_wscale
    if before.timestamps:
        assert after.timestamps == (
            seq.add(before.timestamps[0], ts_delta), before.timestamps[1]
        )


@settings(max_examples=300)
@given(segments(src=SERVICE.server.packed, sport=SERVICE.server_port), U32, U32)
def test_translation_there_and_back_is_the_identity(
    packet: bytes, seq_delta: int, ts_delta: int
) -> None:
    """The client acknowledges just what it was sent: the server reads its own numbers again."""
    original = Segment(packet)
    assume(original.flags & ACK and _has_plain_options(packet))
    flow = _flow(seq_delta, ts_delta, (0, 0))

    at_client = translate.to_client(original, flow)
    echoed = translate.to_server(Segment(_mirror(at_client)), flow)

    back = Segment(echoed)
    assert holds(echoed)
    assert back.ack == original.seq
    assert back.seq == original.ack
    assert back.payload == original.payload
    if original.timestamps:
        assert back.timestamps == original.timestamps[::-1]
    assert back.packet[16:20] == SERVICE.server.packed


def _has_plain_options(packet: bytes) -> bool:
    """Whether scapy writes the options as it reads them, and there is at most one of each kind."""
    read = IP(packet)
    again = read.copy()
    again[TCP].options = list(read[TCP].options)
    del again.chksum, again[TCP].chksum, again[TCP].dataofs, again.len
    names = [name for name, _ in read[TCP].options if name != "NOP"]
    return bytes(again) == packet and len(set(names)) == len(names) and "SAck" not in names


@settings(max_examples=300)
@given(st.lists(U32, min_size=2, max_size=8).filter(lambda edges: len(edges) % 2 == 0), U32,
       st.booleans(), U32)
def test_sack_blocks_at_the_server_are_its_own_numbers(
    edges: list[int], seq_delta: int, shifted: bool, ack: int
) -> None:
    """Blocks of one to four, at an even offset and at an odd one, across the wrap."""
    octets = struct.pack(f"!BB{len(edges)}I", 5, 2 + 4 * len(edges), *edges)
    octets = (b"\x01" if shifted else b"\x01\x01") + octets
    octets += bytes(-len(octets) % 4)
    packet = tcp.emit(bytes(4) + BRIDGE + b"\x9c\x40\0\x50", 1, ack, ACK, option_octets=octets)

    after = translate.to_server(Segment(packet), _flow(seq_delta, 0, (0, 0)))

    assert holds(after)
    off, count = options.sack_blocks(after, tcp.OPTIONS_OFF, Segment(after).payload_off)
    found = struct.unpack_from(f"!{2 * count}I", after, off)
    assert list(found) == [seq.add(edge, -seq_delta) for edge in edges]
    assert Segment(after).ack == seq.add(ack, -seq_delta)
