"""An open flow's packets, translated both ways: numbers, clocks, SACK blocks and windows."""

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet

from tests.golden.case import Book, Case
from tests.golden.splice import SERVER, Splice, bridge_config
from tests.golden.stacks import NOP, REQUEST, SACK_OK, VIP, Client, changed, timestamps

book = Book("packetbridge", bridge_config)
END = 1 + len(REQUEST)
# Found by search: the cookie for this client is 0xffffff.., just before the wrap.
LAST_COOKIE = {"port": 40230, "isn": 106359}


def _wrapping(**fields: object) -> Splice:
    """A connection whose cookie_isn is 41 octets before the wrap, and server_isn 4096."""
    client = Client(**LAST_COOKIE, **fields)
    assert client.cookie_isn > 0xFFFF_FF00
    return Splice(client, server_isn=0xFFFF_F000)


def _deliver(case: Case, splice: Splice, segments: int, length: int = 1000) -> None:
    """The server answers with some data."""
    for number in range(segments):
        splice.down(case, "A", 1 + number * length, END, bytes([number]) * length, ms=(2, 1))


@book.case()
def numbers_and_clocks_differ_by_constants(case: Case) -> None:
    """Data, ACKs, window updates, keep-alives, zero-window probes, urgent data and pushed data, in
    both directions: sequence and acknowledgment numbers, TSval and TSecr are each side's own, and
    all else is the same."""
    splice = Splice()

    splice.open(case)
    splice.down(case, "A", 1, END, ms=(1, 0))
    splice.down(case, "PA", 1, END, b"a" * 1000, ms=(7, 0))
    splice.up(case, "A", END, 1001, ms=(8, 7))
    splice.up(case, "A", END, 1001, window=0, ms=(9, 7))
    splice.down(case, "A", 1001, END, b"b", ms=(300, 9))
    splice.down(case, "A", 1000, END, ms=(400, 9))
    splice.up(case, "A", END, 1002, window=65535, ms=(401, 300))
    splice.up(case, "A", END - 1, 1002, ms=(500, 300))
    splice.up(case, "A", END - 1, 1002, b"\0", ms=(501, 300))
    splice.up(case, "PAU", END, 1002, b"urgent", urgent=6, ms=(502, 300))
    splice.down(case, "PAU", 1002, END + 6, b"urgent", urgent=3, ms=(503, 502))
    splice.up(case, "PA", END + 6, 1008, REQUEST, ms=(504, 503))


@book.case()
def numbers_wrap_on_either_side(case: Case) -> None:
    """The client's numbers, the cookie's and the server's each wrap at 2^32 at another octet of the
    stream, and none of it shows."""
    splice = _wrapping()

    splice.open(case)
    for start in range(0, 6000, 500):
        splice.down(case, "A", 1 + start, END, b"d" * 500, ms=(3, 0))
        splice.up(case, "A", END, 501 + start, ms=(4, 3))
    late = Splice(Client(isn=0xFFFF_FFF0), server_isn=0xFFFF_FFFF)
    late.open(case)
    late.down(case, "PA", 1, END, b"d" * 40, ms=(3, 0))
    late.up(case, "PA", END, 41, REQUEST, ms=(4, 3))


@book.case()
def clocks_wrap_on_either_side(case: Case) -> None:
    """The server's clock wraps at 2^32 while the client's view of it goes on, and the other way
    round."""
    for port, server_clock, echo in ((40000, 0xFFFF_FFF0, (1 << 24) + 20), (40001, 5, 0x7F00_03F8),
                                     (40002, 0x0100_0000, 0xFF00_03FC)):
        splice = Splice(Client(port), server_clock=server_clock, echo=echo)
        splice.open(case)
        for ms in (1, 9, 17, 5000, 0xFF_FC00, 0xFF_FC08):
            splice.down(case, "A", 1, END, ms=(ms, 0))
            splice.up(case, "A", END, 1, ms=(ms, ms))


@book.case()
def sack_blocks_are_the_server_s_numbers_at_the_server(case: Case) -> None:
    """One, two and three SACK blocks beside timestamps, across the wrap of either side's numbers:
    both edges of each are translated."""
    splice = _wrapping()

    splice.open(case)
    _deliver(case, splice, 7)
    for sack in ([11, 36], [30, 61], [1001, 2001], [4001, 5001, 2001, 3001],
                 [6001, 7001, 4001, 5001, 30, 3001]):
        splice.up(case, "A", END, 11, sack=sack, ms=(9, 2))


@book.case()
def four_sack_blocks_fit_where_there_are_no_timestamps(case: Case) -> None:
    """Without timestamps a header has room for four blocks, and all four are translated."""
    splice = _wrapping(timestamps=False)

    splice.open(case)
    _deliver(case, splice, 7)
    splice.up(case, "A", END, 11, sack=[6001, 7001, 4501, 5001, 3001, 4096, 21, 1001])
    splice.up(case, "A", END, 1001, sack=[1, 501])
    splice.up(case, "A", END, 1001, sack=[3001, 4001, 2001, 2501])


@book.case()
def the_server_s_sack_blocks_are_the_client_s_numbers_already(case: Case) -> None:
    """What the server says it has received is in the client's own numbers, D-SACK too, and passes
    unchanged."""
    splice = _wrapping()

    splice.open(case)
    splice.down(case, "A", 1, END, sack=[END + 100, END + 200], ms=(3, 0))
    splice.down(case, "A", 1, END, sack=[1, END, END + 100, END + 200, END + 300, END + 400],
                ms=(4, 0))
    plain = Splice(Client(40001, timestamps=False))
    plain.open(case)
    plain.down(case, "A", 1, END, sack=[900, 1000, 700, 800, 500, 600, 300, 400])


@book.case()
def options_are_translated_wherever_they_stand(case: Case) -> None:
    """Timestamps and SACK blocks at odd offsets, in the other order, before and after options that
    nobody knows: found, translated, and the checksum is right."""
    splice = _wrapping()
    client = splice.client

    def options(stamp: tuple[int, int], edges: tuple[int, ...], layout: str) -> list:
        one = {"t": ("Timestamp", stamp), "s": ("SAck", edges), "n": NOP, "x": (253, b"\xf9\x89z")}
        return [one[letter] for letter in layout]

    splice.open(case)
    _deliver(case, splice, 2)
    for layout in ("st", "nst", "tns", "nnns", "xst", "s", "nt", "xt", "t"):
        at_bridge, at_server = (
            changed(packet, options=options(
                packet[TCP].options[2][1],
                tuple(isn + edge & 0xFFFFFFFF for edge in (30, 61)), layout,
            ))
            for packet, isn in (
                (splice.at_bridge("A", END, 11, ms=(9, 2)), client.cookie_isn),
                (splice.at_server("A", END, 11, ms=(9, 2)), splice.server_isn),
            )
        )
        case.sends("to_server", at_bridge, at_server)
    for layout in ("nt", "tnn", "xt"):
        sent, received = (
            changed(packet, options=options(packet[TCP].options[2][1], (), layout))
            for packet in (splice.from_server("A", 2001, END, ms=(9, 2)),
                           splice.at_client("A", 2001, END, ms=(9, 2)))
        )
        case.sends("to_client", sent, received)


@book.case()
def broken_sack_blocks_are_left_alone(case: Case) -> None:
    """A SACK option with half a block, or one that does not fit into the header, is no SACK option;
    the segment passes with it as it is."""
    splice = Splice(Client(timestamps=False))

    splice.open(case)
    _deliver(case, splice, 2)
    for octets in (b"\x05\x08" + b"\x11" * 6, b"\x05\x0b" + b"\x11" * 9 + b"\0",
                   b"\x01\x01\x05\x12" + b"\x11" * 8, b"\x05\x02\x01\x01", b"\x05\x00" + bytes(10)):
        made = []
        for packet in (splice.at_bridge("A", END, 11), splice.at_server("A", END, 11)):
            packet[TCP].dataofs = 5 + len(octets) // 4
            made.append(packet / octets)
        case.sends("to_server", *made)


@book.case()
def windows_are_rescaled_to_what_was_advertised(case: Case) -> None:
    """The client reads the server's windows by the scale of the SYN-ACK that it got, 7; a server
    with a smaller one, or a larger one, means something else by them. They are rounded down, and at
    most 65535."""
    for port, wscale, windows in (
        (40000, 7, [(0, 0), (1, 1), (65535, 65535)]),
        (40001, 5, [(0, 0), (3, 0), (4, 1), (1001, 250), (65535, 16383)]),
        (40002, 9, [(0, 0), (1, 4), (1000, 4000), (16383, 65532), (16384, 65535)]),
        (40003, 0, [(127, 0), (128, 1), (65535, 511)]),
        (40004, 14, [(1, 128), (600, 65535)]),
    ):
        splice = Splice(Client(port), server_wscale=wscale)
        splice.open(case)
        for sent, received in windows:
            splice.down(case, "A", 1, END, window=sent, at_client={"window": received},
                        ms=(1, 0))
        splice.up(case, "A", END, 1, window=1000, ms=(2, 1))


@book.case()
def a_server_without_window_scaling_gets_true_windows(case: Case) -> None:
    """A server that does not answer the window scale reads the client's windows as they stand, so
    they are multiplied out; its own are scaled down for the client, who was promised a scale."""
    splice = Splice(server_wscale=None)
    request, at_server = (make("PA", payload=REQUEST) for make in
                          (splice.at_bridge, splice.at_server))

    case.sends("replayed", request, splice.syn())
    case.sends("opened", splice.syn_ack(), changed(at_server, window=502 << 7))
    for sent, received in ((65535, 511), (64240, 501), (127, 0)):
        splice.down(case, "A", 1, END, window=sent, at_client={"window": received}, ms=(1, 0))
    for sent, received in ((0, 0), (1, 128), (511, 65408), (512, 65535), (65535, 65535)):
        case.sends("to_server", splice.at_bridge("A", END, window=sent, ms=(3, 1)),
                   splice.at_server("A", END, window=received, ms=(3, 1)))


@book.case()
def a_client_without_window_scaling_is_left_as_it_is(case: Case) -> None:
    """Where the client offered none, neither side scales, and nothing is changed."""
    splice = Splice(Client(wscale=None), server_wscale=None)
    options = [("MSS", 1460), SACK_OK, ("Timestamp", (7_000_000, 0))]

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST),
               splice.syn(options, window=502))
    case.sends("opened", splice.syn_ack(), splice.at_server("PA", payload=REQUEST))
    splice.down(case, "A", 1, END, window=65535, ms=(1, 0))
    splice.up(case, "A", END, window=65535, ms=(1, 1))


@book.case(services=[{"wscale": 3}])
def the_advertised_scale_is_configuration(case: Case) -> None:
    """Where the balancer's SYN-ACKs offer a scale of 3, the server's 7 is rescaled to that."""
    splice = Splice()

    splice.open(case)
    splice.down(case, "A", 1, END, window=100, at_client={"window": 1600}, ms=(1, 0))
    splice.down(case, "A", 1, END, window=8000, at_client={"window": 65535}, ms=(1, 0))


@book.case()
def a_server_without_timestamps_is_left_out_of_them(case: Case) -> None:
    """A server that does not answer timestamps ignores the client's, so these pass as they are."""
    splice = Splice(server_clock=(1 << 24) + 20)
    no_stamp = splice.syn_ack([("MSS", 1460), NOP, NOP, SACK_OK, NOP, ("WScale", 7)])

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.sends("opened", no_stamp, splice.at_server("PA", payload=REQUEST))
    case.sends("to_client", changed(splice.from_server("A", 1, END), options=[]),
               changed(splice.at_client("A", 1, END), options=[]))
    splice.up(case, "A", END, 1, ms=(5, 0))


@book.case()
def ecn_and_ttl_are_kept_and_the_dscp_is_taken_off(case: Case) -> None:
    """The tag is for the bridge, and the server gets the best-effort DSCP with the path's ECN bits
    and a TTL one lower; what the server sends keeps its own DSCP, ECN bits and TTL."""
    splice = Splice(Client(timestamps=False))

    splice.open(case)
    for tos in (0, 1, 2, 3):
        splice.up(case, "AEC", END, 1, tos=tos, ttl=2 + tos)
        splice.down(case, "AEC", 1, END, tos=tos | 0x88, ttl=64 - tos)


@book.case(services=[{"server": f"{SERVER}:80"},
                     {"dscp": 7, "vip": f"{VIP}:8080", "server": f"{SERVER}:80"}])
def one_server_may_stand_behind_two_vips(case: Case) -> None:
    """Two VIPs lead to one server; a client's flows through both are told apart by its ports, each
    reply comes from the VIP that was asked, and the same port through both at once is refused."""
    web = Splice(Client(40000), server_port=80)
    other = Splice(Client(40001, vip_port=8080), server_port=80, dscp=7)
    clash = Splice(Client(40000, vip_port=8080), server_port=80, dscp=7)

    web.open(case)
    other.open(case)
    web.down(case, "PA", 1, END, b"web", ms=(1, 0))
    other.down(case, "PA", 1, END, b"other", ms=(1, 0))
    case.sends("reset", clash.at_bridge("PA", payload=REQUEST), clash.reset_to_client())
    web.up(case, "A", END, 4, ms=(2, 1))


@book.case()
def damage_is_passed_on_and_not_mended(case: Case) -> None:
    """A checksum that arrives wrong by some amount leaves wrong by the same amount, in both
    directions, so that the end host finds out."""
    splice = Splice()

    splice.open(case)
    _deliver(case, splice, 1)
    for error in (1, 0x8000, 0xFFFE):
        case.sends("to_server", *(
            _damaged(make("A", END, 11, sack=[500, 1001], ms=(9, 2)), error)
            for make in (splice.at_bridge, splice.at_server)
        ))
        case.sends("to_client", *(
            _damaged(make("PA", 1001, END, b"odd", ms=(9, 2)), error)
            for make in (splice.from_server, splice.at_client)
        ))


@book.case()
def what_the_bridge_does_not_know_it_does_not_touch(case: Case) -> None:
    """The IP identification, DF clear, reserved TCP bits and unknown options pass both ways."""
    splice = Splice()
    extra = [*timestamps(0, 0), (254, b"\x12\x34data"), (30, b"\0\1")]

    splice.open(case)
    for reason, arrive, leave in (("to_server", splice.at_bridge, splice.at_server),
                                  ("to_client", splice.from_server, splice.at_client)):
        made: list[Packet] = []
        for make in (arrive, leave):
            packet = make("A", 1, 1, b"x", id=0xBEEF, ip_flags="", ms=(1, 1))
            stamp = packet[TCP].options[2]
            made.append(changed(packet, reserved=7, options=[*extra[:2], stamp, *extra[3:]]))
        case.sends(reason, *made)


def _damaged(packet: Packet, error: int) -> Packet:
    """`packet` with a TCP checksum that is too large by `error`, in ones' complement."""
    return changed(packet, chksum=(IP(bytes(packet))[TCP].chksum + error) % 0xFFFF)
