"""Properties of octets: checksums, headers and options, against other readers of them."""

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, IPerror, TCPerror
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from common.verdict import DropReason
from common.wire import Malformed, arp, checksum, icmp, options, seq, tcp
from common.wire.family import look
from common.wire.options import Options
from tests.fuzz.packets import (
    ADDRESS,
    OPTION_OCTETS,
    U8,
    U16,
    U32,
    faults,
    fragments,
    icmp_error,
    internet_checksum,
    segments,
)

# --- checksums ---


@given(st.binary(max_size=200))
def test_a_checksum_is_the_sum_of_words(octets: bytes) -> None:
    assert checksum.checksum(octets) == internet_checksum(octets)


@settings(max_examples=500)
@given(st.binary(min_size=24, max_size=60), st.data())
def test_a_patched_checksum_is_the_one_reckoned_anew(octets: bytes, data: st.DataObject) -> None:
    off = data.draw(st.integers(0, len(octets) - 4))
    new = data.draw(U32 | st.sampled_from([0, 0xFFFFFFFF]))
    changed = octets[:off] + new.to_bytes(4) + octets[off + 4:]
    assume(any(changed))  # no packet is all zeros, and zero has two forms

    change = checksum.change_at(off, int.from_bytes(octets[off:off + 4]), new)
    patched = checksum.patch(internet_checksum(octets), change)

    assert patched == internet_checksum(changed)


@given(U16, st.lists(st.tuples(st.integers(0, 29), U16), max_size=8))
@example(0xFFFF, [(3, 0)])
@example(0, [(3, 0xFFFF)])
def test_many_patches_at_once_are_as_one_after_the_other(
    word: int, writes: list[tuple[int, int]]
) -> None:
    """Words of any value, so of 0 and of 0xffff as well, which are both zero in a sum."""
    words = [0x4500, *([word] * 29)]
    field = internet_checksum(struct.pack("!30H", *words))
    total, each = 0, field
    for index, new in writes:
        total += checksum.change(words[index], new)
        each = checksum.patch(each, checksum.change(words[index], new))
        words[index] = new
    assume(any(words))

    expected = internet_checksum(struct.pack("!30H", *words))
    assert checksum.patch(field, total) == each == expected


# --- headers ---


def _checked(octets: bytes) -> int | DropReason:
    packet = look(octets)
    return len(packet.octets) if packet.fault is None else packet.fault


@settings(max_examples=400)
@given(segments(), st.integers(0, 7), U8, st.integers(0, 80), st.binary(max_size=4))
def test_an_ip_header_is_judged_as_scapy_reads_it(
    packet: bytes, off: int, octet: int, length: int, padding: bytes
) -> None:
    octets = (packet[:off] + bytes([octet]) + packet[off + 1:])[:length] + padding
    if len(octets) < 20:
        assert _checked(octets) is DropReason.MALFORMED_IP
        return
    read = IP(octets[:20])  # only the header: what follows is not in question
    if read.version != 4 or read.ihl < 5:
        expected: int | DropReason = DropReason.MALFORMED_IP
    elif read.ihl > 5:
        expected = DropReason.IP_OPTIONS
    elif not 20 <= read.len <= len(octets):
        expected = DropReason.MALFORMED_IP
    elif read.flags.MF or read.frag:
        expected = DropReason.FRAGMENT
    else:
        expected = read.len

    assert _checked(octets) == expected


@given(segments(), st.sampled_from([8, 16]))
def test_no_fragment_is_taken_for_a_segment(packet: bytes, size: int) -> None:
    for piece in fragments(packet, size):
        with pytest.raises(Malformed) as malformed:
            tcp.checked(piece)

        assert malformed.value.reason is DropReason.FRAGMENT


@given(segments())
def test_a_segment_is_what_scapy_reads(packet: bytes) -> None:
    segment, read = tcp.checked(packet), IP(packet)
    payload = bytes(read[Raw]) if Raw in read else b""

    assert faults(packet) == []
    assert segment.checksum_holds()
    assert (segment.seq, segment.ack, segment.window) == (
        read[TCP].seq, read[TCP].ack, read[TCP].window
    )
    assert segment.flags == int(read[TCP].flags)
    assert segment.payload == payload
    assert segment.seq_len == len(payload) + ("S" in read[TCP].flags) + ("F" in read[TCP].flags)
    assert segment.five_tuple == (
        IPv4Address(read.src).packed + IPv4Address(read.dst).packed
        + struct.pack("!HH", read[TCP].sport, read[TCP].dport)
    )


@given(segments(), st.integers(20, 100), st.integers(1, 255))
def test_a_checksum_holds_until_an_octet_changes(packet: bytes, off: int, change: int) -> None:
    damaged = bytearray(packet)
    damaged[off % (len(packet) - 20) + 20] ^= change

    try:
        segment = tcp.checked(bytes(damaged))
    except Malformed:
        return
    assert not segment.checksum_holds()


@given(segments(), st.binary(max_size=8))
def test_padding_of_the_link_is_no_part_of_a_segment(packet: bytes, padding: bytes) -> None:
    assert tcp.checked(packet + padding).octets == packet


@given(segments(), st.data())
def test_a_packet_cut_short_is_malformed(packet: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(packet) - 1))

    with pytest.raises(Malformed):
        tcp.checked(packet[:end])


@settings(max_examples=500)
@given(st.binary(max_size=80) | segments().flatmap(
    lambda packet: st.tuples(st.integers(0, len(packet) - 1), U8).map(
        lambda change: packet[:change[0]] + bytes([change[1]]) + packet[change[0] + 1:]
    )
))
def test_whatever_octets_come_only_malformed_is_raised(octets: bytes) -> None:
    try:
        segment = tcp.checked(octets)
    except Malformed:
        return

    assert segment.payload_off + segment.payload_len == len(segment.octets) <= len(octets)
    segment.options()
    blocks_off, blocks = segment.sack_blocks()
    assert blocks_off + 8 * blocks <= segment.payload_off


@given(segments())
def test_a_reset_is_one_that_its_receiver_believes(packet: bytes) -> None:
    """RFC 9293 §3.10.7.1: the number that was acknowledged, else an acknowledgment."""
    segment = tcp.checked(packet)

    made = tcp.reset_for(segment)

    read, came = IP(made), IP(packet)
    assert faults(made) == []
    assert (read.src, read.dst, read[TCP].sport, read[TCP].dport) == (
        came.dst, came.src, came[TCP].dport, came[TCP].sport
    )
    if "A" in came[TCP].flags:
        assert (str(read[TCP].flags), read[TCP].seq) == ("R", came[TCP].ack)
    else:
        acknowledged = came[TCP].seq + segment.seq_len & 0xFFFFFFFF
        assert (str(read[TCP].flags), read[TCP].seq, read[TCP].ack) == ("RA", 0, acknowledged)


# --- options ---


@given(st.none() | U16, st.booleans(), st.none() | st.tuples(U32, U32), st.none() | U8)
def test_options_that_are_emitted_are_read_again(
    mss: int | None, sack: bool, timestamps: tuple[int, int] | None, wscale: int | None
) -> None:
    offered = Options(mss, sack, timestamps, wscale)

    octets = options.emit(offered)

    assert len(octets) % 4 == 0
    assert options.parse(octets, 0, len(octets)) == offered


@given(st.lists(st.tuples(U32, U32), max_size=5))
def test_sack_blocks_that_are_emitted_are_read_again(blocks: list[tuple[int, int]]) -> None:
    octets = options.emit_sack(blocks)

    off, count = options.sack_blocks(octets, 0, len(octets))
    edges = struct.unpack_from(f"!{2 * count}I", octets, off)

    assert len(octets) % 4 == 0
    assert list(zip(edges[::2], edges[1::2], strict=True)) == blocks[:3]


@settings(max_examples=400)
@given(OPTION_OCTETS)
def test_options_are_read_as_scapy_reads_them(octets: bytes) -> None:
    packet = tcp.emit(bytes(12), 1, 2, 16, option_octets=octets)
    read = IP(packet)[TCP].options
    assume(not any(isinstance(name, int) and name < 2 for name, _ in read))
    # Octets are what scapy makes of a wrong length. Of a kind, the last one counts.
    read = [(name, value) for name, value in read if value == b"" or type(value) is not bytes]
    read = [(name, value) for name, value in read if (value == b"") == (name == "SAckOK")]
    values = dict(read)

    found = tcp.checked(packet).options()

    assert found == Options(
        values.get("MSS"), "SAckOK" in values, values.get("Timestamp"), values.get("WScale")
    )
    stamps = [value for name, value in read if name == "Timestamp"]
    blocks = [value for name, value in read if name == "SAck"]
    segment = tcp.checked(packet)
    off, count = segment.sack_blocks()
    assert segment.timestamps == (stamps[0] if stamps else None)
    assert struct.unpack_from(f"!{2 * count}I", packet, off) == (blocks[0] if blocks else ())


@settings(max_examples=300)
@given(OPTION_OCTETS, st.integers(0, 39), U8)
def test_a_spoilt_option_costs_none_of_those_before_it(octets: bytes, off: int, octet: int) -> None:
    assume(off < len(octets))
    spoilt = octets[:off] + bytes([octet]) + octets[off + 1:]
    whole = [kept for kept in options.walk(octets, 0, len(octets)) if kept[1] + kept[2] <= off]

    walked = list(options.walk(spoilt, 0, len(spoilt)))

    assert walked[:len(whole)] == whole
    assert all(at + length <= len(spoilt) for _, at, length in walked)


# --- ICMP ---


@settings(max_examples=300)
@given(segments(), st.integers(0, 18), st.integers(0, 60), ADDRESS, ADDRESS)
def test_an_error_quotes_the_flow_that_scapy_reads(
    quoted: bytes, kind: int, length: int, src: bytes, dst: bytes
) -> None:
    packet = icmp_error(kind, src, dst, quoted[:length])
    if kind not in (3, 11, 12) or length < 28:
        with pytest.raises(Malformed):
            icmp.Quote(look(packet))
        assert not icmp.is_about_tcp(look(packet)) or kind in (3, 11, 12)
        return

    quote = icmp.Quote(look(packet))

    read = IP(packet)
    about = IP(bytes(read[IPerror]) + bytes(100)) if TCPerror not in read else read[IPerror]
    assert icmp.is_about_tcp(look(packet))
    assert quote.five_tuple[:8] == IPv4Address(about.src).packed + IPv4Address(about.dst).packed
    assert quote.five_tuple[8:] == quoted[20:24]
    stamps_off = tcp.checked(quoted).ts_off
    if stamps_off and stamps_off + 8 <= length:
        assert quote.tsval == int.from_bytes(quoted[stamps_off:stamps_off + 4])
    else:
        assert quote.tsval == 0


@settings(max_examples=300)
@given(st.binary(max_size=90), st.booleans())
def test_whatever_error_comes_only_malformed_is_raised(octets: bytes, alike: bool) -> None:
    packet = bytearray(octets)
    if alike:
        packet[:1], packet[9:10], packet[20:21], packet[28:29] = b"\x45", b"\1", b"\3", b"\x45"
        packet[2:4] = len(packet).to_bytes(2)
    try:
        quote = icmp.Quote(look(bytes(packet)))
    except Malformed:
        return

    assert quote.tsval_off + 4 <= len(quote.octets)
    assert len(quote.five_tuple) == 12


@given(segments(), U16, ADDRESS)
def test_fragmentation_needed_says_so_to_the_sender(packet: bytes, mtu: int, src: bytes) -> None:
    made = icmp.emit_fragmentation_needed(packet * 20, mtu, src)

    read = IP(made)
    assert faults(made) == []
    assert len(made) <= 576  # RFC 1812 §4.3.2.3
    assert (read[ICMP].type, read[ICMP].code, read[ICMP].nexthopmtu) == (3, 4, mtu)
    assert (IPv4Address(read.src).packed, IPv4Address(read.dst).packed) == (src, packet[12:16])
    assert made[28:] == (packet * 20)[:len(made) - 28]
    assert len(made) >= 28 + 28  # RFC 792: the quoted header and 8 octets


# --- sequence numbers ---


@given(U32, st.integers(-2**33, 2**33))
def test_sequence_numbers_are_a_circle(start: int, count: int) -> None:
    end = seq.add(start, count)

    assert seq.delta(end, start) == count % 2**32
    assert seq.add(end, -count) == start
    if 0 < count < 2**31:
        assert seq.before(start, end)
        assert not seq.before(end, start)


@given(U32, U32, U32)
def test_between_is_a_walk_from_low_to_high(low: int, length: int, steps: int) -> None:
    assert seq.between(low, seq.add(low, steps), seq.add(low, length)) == (steps <= length)


# --- ARP ---


@given(st.binary(max_size=80))
def test_any_frame_is_arp_or_none(frame: bytes) -> None:
    arp.parse(frame)


@given(st.binary(min_size=6, max_size=6), ADDRESS)
def test_arp_is_made_as_others_read_it(mac: bytes, address: bytes) -> None:
    for sender, frame in ((bytes(4), arp.probe(mac, address)),
                          (address, arp.announcement(mac, address))):
        read = Ether(frame)[ARP]

        assert (read.op, read.hwsrc, read.hwdst) == (1, mac.hex(":"), "00:00:00:00:00:00")
        assert [IPv4Address(end).packed for end in (read.psrc, read.pdst)] == [sender, address]
        assert arp.parse(frame) == arp.Arp(1, mac, sender, address)
