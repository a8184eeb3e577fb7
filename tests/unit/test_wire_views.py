"""Views of packets beyond those that captures show: datagrams, five-tuples, services' names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from common.cluster.service import TCP_OCTET, Endpoint, key_of, numbered
from common.encap import dscp
from common.wire import Malformed, five_tuple, seq, tcp
from common.wire.family import look
from common.wire.packet import TCP
from common.wire.udp import Datagram

VIP, BRIDGE, CLIENT = bytes((192, 168, 33, 10)), bytes((192, 168, 33, 20)), bytes((10, 0, 0, 1))


@given(st.binary(max_size=40), st.integers(1, 65535), st.integers(0, 65535))
def test_a_datagram_is_what_scapy_reads(payload: bytes, sport: int, dport: int) -> None:
    made = bytes(IP(src="10.0.0.1", dst="192.168.33.10") / UDP(sport=sport, dport=dport)
                 / Raw(payload))

    datagram = Datagram(look(made + b"padding"))

    assert datagram.payload == payload
    assert datagram.checksum_holds()
    assert datagram.five_tuple == CLIENT + VIP + sport.to_bytes(2) + dport.to_bytes(2)
    assert (datagram.sport, datagram.dport) == (sport.to_bytes(2), dport.to_bytes(2))


@pytest.mark.parametrize("length", [0, 7, 11, 13])
def test_a_datagram_whose_length_lies_is_malformed(length: int) -> None:
    made = bytes(IP() / UDP(len=length) / Raw(b"four"))

    with pytest.raises(Malformed):
        Datagram(look(made))


def test_a_damaged_datagram_is_found_and_one_without_checksum_is_taken() -> None:
    made = bytes(IP() / UDP() / Raw(b"four"))
    without = bytes(IP() / UDP(chksum=0) / Raw(b"four"))

    assert not Datagram(look(made[:-1] + b"x")).checksum_holds()
    assert Datagram(look(without)).checksum_holds()


@given(st.sampled_from([4, 16]).flatmap(
    lambda size: st.tuples(*(st.binary(min_size=each, max_size=each)
                             for each in (size, size, 2, 2)))
))
def test_a_five_tuple_comes_apart_as_it_was_joined(
    ends: tuple[bytes, bytes, bytes, bytes]
) -> None:
    joined = five_tuple.join(*ends)
    src, dst, sport, dport = ends

    assert five_tuple.split(joined) == ends
    assert five_tuple.split(five_tuple.reverse(joined)) == (dst, src, dport, sport)
    assert five_tuple.reverse(five_tuple.reverse(joined)) == joined


def test_a_packet_is_for_the_service_whose_endpoint_it_names() -> None:
    segment = tcp.checked(tcp.emit(CLIENT + VIP + b"\x10\x00\x01\xbb", 1, 2, tcp.ACK))

    named = key_of(segment.packet.dst, TCP_OCTET, segment.dport)

    assert named == Endpoint(VIP, TCP, 443).packed
    assert named != Endpoint(VIP, TCP, 80).packed
    assert named != Endpoint(VIP, 17, 443).packed


def test_a_service_keeps_its_number_and_no_other_gets_it() -> None:
    first, second, third = (Endpoint(VIP, TCP, port) for port in (80, 443, 8080))
    known = {first: 0, second: 1}

    assert numbered([third, second], known, 4) == {third: 2, second: 1}
    assert numbered([first], {}, 1) == {first: 0}
    with pytest.raises(ValueError, match="more than 2 services"):
        numbered([third], known, 2)


def test_what_is_wrapped_for_a_bridge_is_unwrapped_there_and_nowhere_else() -> None:
    name = Endpoint(VIP, TCP, 80).packed
    sent = bytearray(tcp.emit(CLIENT + VIP + b"\x10\x00\x00\x50", 1, 2, tcp.ACK, tos=0b10))
    way = dscp.Way(VIP, BRIDGE, 3)
    tcp.patch_checksum(sent, 20, way.changes)

    wrapped = way.wrap(sent)
    came = look(wrapped)

    assert tcp.Segment(came).checksum_holds()
    assert len(wrapped) == len(sent) + way.overhead
    assert (came.dst, came.tos, came.ttl) == (BRIDGE, 3 << 2 | 0b10, 63)
    assert dscp.Label(BRIDGE, {3: name}).unwrap(came) == (came, name)
    assert dscp.Label(BRIDGE, {7: name}).unwrap(came) is None
    assert dscp.Label(CLIENT, {3: name}).unwrap(came) is None


@pytest.mark.parametrize("distance, is_before", [
    (0, False), (1, True), ((1 << 31) - 1, True), (1 << 31, False), ((1 << 31) + 1, False),
])
def test_a_number_precedes_those_in_the_half_circle_behind_it(
    distance: int, is_before: bool
) -> None:
    """As the programs' is_after: numbers on opposite sides precede each other in neither way."""
    for first in (0, 7, 0xFFFFFFFF):
        assert seq.before(first, first + distance & 0xFFFFFFFF) == is_before
