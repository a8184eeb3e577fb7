"""Both directions of translation, against packets built from the fields that they must have.

Source: docs/wire.md; RFC 9293 §3.1, RFC 7323 §3.2, RFC 2018 §3, RFC 792.
"""

import struct
from ipaddress import IPv4Address
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from common.encap import dscp
from common.verdict import DropReason
from common.wire import Malformed, icmp, tcp
from common.wire.family import look
from common.wire.tcp import ACK
from packetbridge import config
from packetbridge.flows import BridgeFlow
from packetbridge.modes import translate
from packetbridge.modes.translate import ServiceState
from tests.fuzz.packets import ADDRESS, U8, U16, U32, faults, icmp_error, mended

SERVICE = config.Service(
    name="web", dscp=3, vip=IPv4Address("192.168.33.10"), port=80,
    server=IPv4Address("192.168.33.30"), server_port=8080,
)
VIP, SERVER = SERVICE.vip.packed, SERVICE.server.packed
BRIDGE = bytes((192, 168, 33, 20))
TOS = SERVICE.dscp << 2
WSCALE = st.integers(0, 14)
NEAR_WRAP = st.integers(2**32 - 5000, 2**32 - 1) | U32


class Option(NamedTuple):
    """An option in parts: the octets before its numbers, the numbers, the octets after them."""

    kind: str
    lead: bytes
    numbers: tuple[int, ...] = ()

    def octets(self) -> bytes:
        return self.lead + struct.pack(f"!{len(self.numbers)}I", *self.numbers)


class Sent(NamedTuple):
    """What a segment says, each field by itself."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    layout: tuple[Option, ...]
    payload: bytes
    tos: int
    ttl: int
    ident: int
    urgent: int

    def packet(self) -> bytes:
        """Its octets, with checksums reckoned whole."""
        octets = b"".join(option.octets() for option in self.layout)
        octets += bytes(-len(octets) % 4)
        segment = struct.pack(
            "!HHIIBBHHH", self.sport, self.dport, self.seq, self.ack, 5 + len(octets) // 4 << 4,
            self.flags, self.window, 0, self.urgent,
        ) + octets + self.payload
        header = struct.pack("!BBHHHBBH4s4s", 0x45, self.tos, 0, self.ident, 0x4000, self.ttl, 6,
                             0, self.src, self.dst)
        return mended(header + segment)

    def shifted(self, kind: str, *addends: int) -> tuple[Option, ...]:
        """The options, with the numbers of one `kind` shifted; addends: in turns."""
        return tuple(
            option._replace(numbers=tuple(
                number + addends[index % len(addends)] & 0xFFFFFFFF
                for index, number in enumerate(option.numbers)
            )) if option.kind == kind else option
            for option in self.layout
        )


NOPS = st.just(Option("other", b"\x01"))
OTHERS = NOPS | st.builds(
    lambda kind, body: Option("other", bytes((kind, 2 + len(body))) + body),
    st.integers(9, 255), st.binary(max_size=3),
)
STAMPS = st.tuples(NEAR_WRAP, NEAR_WRAP).map(lambda pair: Option("stamps", b"\x08\x0a", pair))
BLOCKS = st.integers(1, 4).flatmap(lambda count: st.tuples(*[NEAR_WRAP] * 2 * count)).map(
    lambda edges: Option("sack", bytes((5, 2 + 4 * len(edges))), edges)
)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Option, ...]:
    """Timestamps and SACK blocks, none or one of each, at any offset and in any order."""
    kinds = draw(st.permutations(["stamps", "sack"])) if draw(st.booleans()) else ["stamps"]
    options = draw(st.lists(OTHERS, max_size=3))
    for kind in kinds[:draw(st.integers(0, 2))]:
        options += [draw(STAMPS if kind == "stamps" else BLOCKS)]
        options += draw(st.lists(NOPS, max_size=2))
    while sum(len(option.octets()) for option in options) > 40:
        options.pop(0)
    return tuple(options)


def segments(
    src: bytes, dst: bytes, sport: int, dport: int, tos: st.SearchStrategy[int] = U8
) -> st.SearchStrategy[Sent]:
    """Segments between two ends; a port of 0 is any."""
    return st.builds(
        Sent, st.just(src) if src else ADDRESS, st.just(dst) if dst else ADDRESS,
        st.just(sport) if sport else U16, st.just(dport) if dport else U16, NEAR_WRAP, NEAR_WRAP,
        U8, U16, layouts(), st.binary(max_size=40), tos, st.integers(2, 255), U16, U16,
    )


FROM_CLIENT = segments(b"", BRIDGE, 0, SERVICE.port, st.integers(0, 3).map(TOS.__or__))
FROM_SERVER = segments(SERVER, b"", SERVICE.server_port, 0)


def flow(seq_delta: int = 0, ts_delta: int = 0, **wscales: int) -> BridgeFlow:
    label = dscp.Label(BRIDGE, {SERVICE.dscp: SERVICE.endpoint.packed})
    made = BridgeFlow(bytes(12), ServiceState(SERVICE, label), 0, 0, 0)
    made.is_open = True
    made.seq_delta, made.ts_delta = seq_delta, ts_delta
    for name, shift in wscales.items():
        setattr(made, name, shift)
    return made


@given(FROM_CLIENT)
def test_the_builder_is_right_in_scapys_eyes(sent: Sent) -> None:
    packet = sent.packet()
    read = IP(packet)
    del read.chksum, read[TCP].chksum

    assert faults(packet) == []
    assert bytes(read)[10:12] + bytes(read)[36:38] == packet[10:12] + packet[36:38]


@settings(max_examples=400)
@given(FROM_CLIENT, U32, U32, WSCALE)
def test_a_clients_segment_reaches_the_server_with_the_servers_numbers(
    sent: Sent, seq_delta: int, ts_delta: int, client_wscale: int
) -> None:
    expected = sent._replace(
        dst=SERVER, dport=SERVICE.server_port, tos=sent.tos & 3, ttl=sent.ttl - 1,
        window=min(sent.window << client_wscale, 0xFFFF),
    )
    if sent.flags & ACK:
        expected = expected._replace(
            ack=sent.ack - seq_delta & 0xFFFFFFFF, layout=sent.shifted("sack", -seq_delta)
        )
        expected = expected._replace(layout=expected.shifted("stamps", 0, -ts_delta))

    made = translate.to_server(
        tcp.checked(sent.packet()), flow(seq_delta, ts_delta, client_wscale=client_wscale)
    )

    assert made == expected.packet()


@settings(max_examples=400)
@given(FROM_SERVER, U32, U32, WSCALE, WSCALE)
def test_a_servers_segment_reaches_the_client_with_the_cookies_numbers(
    sent: Sent, seq_delta: int, ts_delta: int, server_wscale: int, advertised_wscale: int
) -> None:
    """Its SACK blocks are the client's numbers, and stay."""
    expected = sent._replace(
        src=VIP, sport=SERVICE.port, seq=sent.seq + seq_delta & 0xFFFFFFFF,
        window=min(sent.window * 2**server_wscale // 2**advertised_wscale, 0xFFFF),
        layout=sent.shifted("stamps", ts_delta, 0),
    )

    made = translate.to_client(tcp.checked(sent.packet()), flow(
        seq_delta, ts_delta, server_wscale=server_wscale, advertised_wscale=advertised_wscale
    ))

    assert made == expected.packet()


@settings(max_examples=300)
@given(FROM_SERVER, U32, U32, st.lists(st.integers(0, 2**20), min_size=2, max_size=2))
def test_there_and_back_is_the_identity(
    sent: Sent, seq_delta: int, ts_delta: int, edges: list[int]
) -> None:
    """A client that acknowledges, echoes and reports what it got is read as if it had got what
    the server sent."""
    between = flow(seq_delta, ts_delta)
    block = Option("sack", b"\x05\x0a", tuple(sent.seq + edge & 0xFFFFFFFF for edge in edges))
    sent = sent._replace(layout=(Option("stamps", b"\x08\x0a", (sent.ack, sent.seq)),))

    got = tcp.checked(translate.to_client(tcp.checked(sent.packet()), between))
    stamps = got.timestamps
    assert stamps is not None
    report = tuple(got.seq + edge & 0xFFFFFFFF for edge in edges)
    echo = Sent(
        got.packet.dst, BRIDGE, sent.dport, SERVICE.port, got.ack, got.seq, ACK, got.window,
        (Option("stamps", b"\x08\x0a", stamps[::-1]), Option("sack", b"\x05\x0a", report)),
        got.payload, TOS | sent.tos & 3, sent.ttl, sent.ident, sent.urgent,
    )
    back = translate.to_server(tcp.checked(echo.packet()), between)

    stamps = Option("stamps", b"\x08\x0a", (sent.seq, sent.ack))
    assert back == sent._replace(
        src=sent.dst, dst=SERVER, sport=sent.dport, dport=SERVICE.server_port, seq=sent.ack,
        ack=sent.seq, flags=ACK, layout=(stamps, block),
        tos=sent.tos & 3, ttl=sent.ttl - 1,
    ).packet()


@given(FROM_CLIENT, FROM_SERVER, U32, U32, st.integers(1, 0xFFFE))
def test_a_wrong_checksum_stays_wrong_by_as_much(
    from_client: Sent, from_server: Sent, seq_delta: int, ts_delta: int, error: int
) -> None:
    between = flow(seq_delta, ts_delta, server_wscale=3, advertised_wscale=7, client_wscale=1)
    for sent, path in ((from_client, translate.to_server), (from_server, translate.to_client)):
        packet = sent.packet()
        field = (int.from_bytes(packet[36:38]) + error) % 0xFFFF
        damaged = packet[:36] + field.to_bytes(2) + packet[38:]

        right, wrong = path(tcp.checked(packet), between), path(tcp.checked(damaged), between)

        assert wrong[:36] + wrong[38:] == right[:36] + right[38:]
        difference = int.from_bytes(wrong[36:38]) - int.from_bytes(right[36:38])
        assert difference % 0xFFFF == error


@settings(max_examples=300)
@given(segments(VIP, b"", SERVICE.port, 0), U32, U32, st.sampled_from(icmp.ERRORS),
       st.integers(28, 120), ADDRESS)
def test_an_error_quotes_what_the_server_sent(
    sent: Sent, seq_delta: int, ts_delta: int, kind: int, length: int, router: bytes
) -> None:
    """As far as it quotes at all: timestamps that are cut off stay as they are."""
    layout = sent.shifted("stamps", -ts_delta, 0)
    whole_len = 40 + _end_of_stamps(sent.layout)
    original = sent._replace(
        src=SERVER, sport=SERVICE.server_port, seq=sent.seq - seq_delta & 0xFFFFFFFF,
        layout=layout if length >= whole_len else sent.layout,
    )
    quoted, expected = sent.packet(), bytearray(original.packet())
    expected[36:38] = quoted[36:38]  # of a segment that nobody receives
    error = icmp_error(kind, router, BRIDGE, quoted[:length], TOS)

    made = translate.error_to_server(icmp.Quote(look(error)), flow(seq_delta, ts_delta))

    assert faults(made) == []
    assert made[20:22] + made[24:28] == error[20:22] + error[24:28]
    assert made[28:] == bytes(expected[:length])
    assert (made[12:16], made[16:20], made[8]) == (router, SERVER, error[8] - 1)


def _end_of_stamps(layout: tuple[Option, ...]) -> int:
    end = 0
    for option in layout:
        end += len(option.octets())
        if option.kind == "stamps":
            return end
    return 0


@given(segments(VIP, b"", SERVICE.port, 0), st.integers(20, 55), st.integers(1, 255))
def test_a_damaged_error_is_not_mended(sent: Sent, off: int, change: int) -> None:
    error = bytearray(icmp_error(3, b"\x0a\0\0\x01", BRIDGE, sent.packet()[:28], TOS))
    error[off] ^= change
    try:
        quote = icmp.Quote(look(bytes(error)))
    except Malformed:
        return

    with pytest.raises(Malformed) as malformed:
        translate.error_to_server(quote, flow(5))

    assert malformed.value.reason is DropReason.BAD_CHECKSUM
