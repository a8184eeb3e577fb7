"""How flows end at the bridge: closed, reset, timed out, evicted; and what nobody knows."""

from scapy.packet import Packet

from tests.golden.case import Book, Case
from tests.golden.splice import SERVER, Splice, bridge_config
from tests.golden.stacks import REQUEST, Client, changed, whole

book = Book("packetbridge", bridge_config)
END = 1 + len(REQUEST)
PLAIN = {"timestamps": False}


def _probe(splice: Splice, seq: int) -> Packet:
    """An ACK from the VIP whose numbers do not fit: the server's, and 0."""
    client = splice.client
    return whole(src=client.vip, dst=client.address, sport=client.vip_port, dport=client.port,
                 seq=splice.server_isn + seq, ack=0, flags="A")


def _close(case: Case, splice: Splice) -> None:
    """The client closes, the server answers with its own FIN, and gets the last ACK."""
    splice.up(case, "FA", END, 1)
    splice.down(case, "FA", 1, END + 1)
    splice.up(case, "A", END + 1, 2)


@book.case()
def a_closed_flow_lingers_and_then_leaves(case: Case) -> None:
    """Once both FINs are acknowledged the flow stays for 10 s, for retransmissions; then it is
    unknown to both sides."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    _close(case, splice)
    case.wait(5000)
    splice.down(case, "FA", 1, END + 1)
    splice.up(case, "A", END + 1, 2)
    case.wait(10_100)
    case.drops("unknown_flow", splice.at_bridge("A", END + 1, 2))
    case.sends("probed", splice.from_server("FA", 1, END + 1), _probe(splice, 1))


@book.case()
def a_server_that_closes_first_is_spliced_to_the_end(case: Case) -> None:
    """FIN from the server with its last data, ACK, FIN from the client, ACK."""
    splice = Splice()

    splice.open(case)
    splice.down(case, "FPA", 1, END, b"bye", ms=(2, 0))
    splice.up(case, "A", END, 5, ms=(3, 2))
    splice.up(case, "FA", END, 5, ms=(4, 2))
    splice.down(case, "A", 5, END + 1, ms=(5, 4))
    case.wait(10_100)
    case.drops("unknown_flow", splice.at_bridge("A", END + 1, 5))


@book.case()
def both_may_close_at_once(case: Case) -> None:
    """FINs that cross, and are acknowledged crosswise, end the flow like any others."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    splice.up(case, "FA", END, 1)
    splice.down(case, "FA", 1, END)
    splice.up(case, "A", END + 1, 2)
    splice.down(case, "A", 2, END + 1)
    case.wait(10_100)
    case.drops("unknown_flow", splice.at_bridge("A", END + 1, 2))


@book.case()
def a_half_closed_flow_goes_on(case: Case) -> None:
    """After the client's FIN the server may send for as long as it likes; nothing expires while it
    does."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    splice.up(case, "FA", END, 1)
    splice.down(case, "A", 1, END + 1)
    for number in range(6):
        case.wait(400_000)
        splice.down(case, "A", 1 + number * 100, END + 1, b"slow" * 25)
        splice.up(case, "A", END + 1, 101 + number * 100)


@book.case()
def a_long_reply_s_last_window_is_on_its_way_when_both_have_closed(case: Case) -> None:
    """The client has closed at once. The server's FIN leaves long before the client has all of the
    reply: its ACKs, and what is sent again of it, pass as before, and the last ACK ends the flow.
    """
    splice = Splice()

    splice.open(case)
    splice.up(case, "FA", END, 1)
    splice.down(case, "A", 1, END + 1, ms=(1, 0))
    for number in range(8):
        splice.down(case, "A", 1 + number * 100, END + 1, bytes(100), ms=(2, 0))
    splice.down(case, "FPA", 801, END + 1, bytes(50), ms=(2, 0))
    for number in range(4):
        splice.up(case, "A", END + 1, 101 + number * 100, ms=(3, 2))
    for number in range(3):
        splice.up(case, "A", END + 1, 401, ms=(3, 2), sack=(501, 601 + number * 100))
    splice.down(case, "A", 401, END + 1, bytes(100), ms=(4, 3))
    splice.up(case, "A", END + 1, 801, ms=(5, 4))
    splice.up(case, "A", END + 1, 852, ms=(5, 4))
    case.wait(10_100)
    case.drops("unknown_flow", splice.at_bridge("A", END + 1, 852))


@book.case()
def what_ends_a_flow_may_come_with_octets_sent_again(case: Case) -> None:
    """Both FINs are on their way, and the server's only acknowledgment of the client's is on a
    segment that it sends again."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    splice.down(case, "A", 1, END, b"reply")
    splice.down(case, "FA", 6, END)
    splice.up(case, "FA", END, 1)
    splice.down(case, "A", 1, END + 1, b"reply")
    splice.up(case, "A", END + 1, 7)
    case.wait(10_100)
    case.drops("unknown_flow", splice.at_bridge("A", END + 1, 7))


@book.case()
def a_client_s_reset_reaches_the_server(case: Case) -> None:
    """A reset with ACK is translated like any segment; one without has no acknowledgment to
    translate. What is still under way passes for 10 s, and is unknown after that."""
    with_ack, without = Splice(Client(40000, **PLAIN)), Splice(Client(40001, **PLAIN))

    with_ack.open(case)
    without.open(case)
    with_ack.down(case, "A", 1, END)
    without.down(case, "A", 1, END)
    with_ack.up(case, "RA", END, 1)
    case.sends("to_server", changed(without.at_bridge("R", END), ack=0),
               changed(without.at_server("R", END), ack=0))
    with_ack.down(case, "A", 1, END, b"late")
    case.wait(10_100)
    case.drops("unknown_flow", with_ack.at_bridge("A", END, 5))
    case.sends("probed", with_ack.from_server("A", 5, END), _probe(with_ack, 5))


@book.case()
def a_reset_of_another_number_than_the_server_expects_ends_nothing(case: Case) -> None:
    """Anybody can write a reset; only one with exactly the number that the server has acknowledged
    is taken for the client's (RFC 5961 §3.2). Of all others the server's stack decides, and the
    flow lives on."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    splice.down(case, "A", 1, END, b"part")
    for seq in (0, 1, END - 1, END + 1, END + 5000, END + (1 << 30), END + (1 << 31)):
        splice.up(case, "RA", seq, 1, window=0)
    case.wait(30_000)
    splice.up(case, "A", END, 5)
    splice.down(case, "A", 5, END, b"more")


@book.case()
def a_fin_that_more_data_contradicts_ends_nothing(case: Case) -> None:
    """Both sides' ends make a flow leave soon; a client's that was followed by more data was none
    of its own, nor is one behind what the server has."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    splice.down(case, "FA", 1, END, b"part")
    splice.up(case, "A", END, 6)
    splice.up(case, "FA", END - 10, 6)
    splice.down(case, "A", 6, END)
    splice.up(case, "FA", END + 100, 6)
    splice.up(case, "PA", END, 6, b"x" * 200)
    splice.down(case, "A", 6, END + 101)
    splice.down(case, "A", 6, END + 200)
    case.wait(100_000)
    splice.up(case, "PA", END + 200, 6, b"more")


@book.case()
def what_a_stranger_acknowledges_moves_nothing(case: Case) -> None:
    """Segments with numbers that the client cannot have sent reach the server, whose stack drops
    them, and the client's own go on as before: what they may say is known from the server alone."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    splice.down(case, "A", 1, END)
    for quarter in range(4):
        splice.up(case, "A", END, (quarter << 30) + 77)
        splice.up(case, "A", END + (quarter << 30) + 77, 1)
    for number in range(3):
        splice.up(case, "PA", END + 100 * number, 1, b"x" * 100)
        splice.down(case, "A", 1, END + 100 * number + 100)


@book.case()
def a_server_s_reset_reaches_the_client(case: Case) -> None:
    """A server that gives up, and a stack that has lost its socket, reset with the server's
    numbers; the client gets its own."""
    for port, flags in ((40000, "RA"), (40001, "R")):
        splice = Splice(Client(port, **PLAIN))
        splice.open(case)
        splice.down(case, "A", 1, END, b"part")
        splice.down(case, flags, 5, END, window=0)
        splice.up(case, "A", END, 5)
    case.wait(10_100)
    case.drops("unknown_flow", splice.at_bridge("A", END, 5))


@book.case()
def an_unknown_flow_of_the_balancer_s_is_reset_after_a_second(case: Case) -> None:
    """A tagged packet of no flow is dropped; if the flow is still unknown a second later the client
    gets a reset, from the VIP that it knows."""
    splice = Splice(Client(**PLAIN))
    packet = splice.at_bridge("PA", 500, 9000, b"x")

    case.drops("unknown_flow", packet)
    case.wait(900)
    case.drops("unknown_flow", packet)
    case.wait(100)
    case.sends("reset", packet, splice.reset_to_client(seq=9000))
    case.drops("unknown_flow", packet)
    lone = changed(splice.at_bridge("F", 500, payload=b"four"), sport=40001)
    case.drops("unknown_flow", lone)
    case.wait(1000)
    case.sends("reset", lone, whole(
        src=splice.client.vip, dst=splice.client.address, sport=80, dport=40001, seq=0,
        ack=splice.client.isn + 505, flags="RA",
    ))


@book.case()
def a_reset_of_no_flow_is_never_answered_by_the_bridge(case: Case) -> None:
    """Neither the client's nor the server's."""
    splice = Splice(Client(**PLAIN))

    for _ in range(3):
        case.drops("reset_unanswered", splice.at_bridge("R", 500, 9000),
                   splice.at_bridge("RA", 500, 9000), splice.from_server("R", 5, 5),
                   splice.from_server("RA", 5, 5))
        case.wait(1100)


@book.case()
def no_reset_goes_to_an_impossible_client(case: Case) -> None:
    """A tagged packet from loopback or multicast, or from the VIP itself, gets no answer."""
    for source in ("127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"):
        packet = Splice(Client(address=source, **PLAIN)).at_bridge("PA", 500, 9000, b"x")
        case.drops("bad_source", packet)
        case.wait(1000)
        case.drops("bad_source", packet)


@book.case(services=[{}, {"dscp": 7, "vip": "192.168.33.11:443"}])
def a_server_s_packet_of_no_flow_asks_its_client_and_resets_its_socket(case: Case) -> None:
    """A marked packet of the server that fits no flow is what a killed bridge left behind. Its
    client is made to speak, by an ACK from each VIP that the server may have been asked by; a
    second later the server's socket is reset, with the number that it expects."""
    splice = Splice(Client(**PLAIN))
    other = changed(_probe(splice, 900), src="192.168.33.11", sport=443)
    packet = splice.from_server("PA", 900, 500, b"data")

    case.sends("probed", packet, _probe(splice, 900), other)
    case.wait(999)
    case.sends("probed", packet, _probe(splice, 900), other)
    case.wait(1)
    case.sends("reset", packet, _probe(splice, 900), other, splice.reset_to_server(seq=500))


@book.case()
def a_restarted_bridge_ends_what_it_does_not_know(case: Case) -> None:
    """The probed client answers with its own numbers, which nobody knows either; a second later it
    is reset with what it acknowledges, and so is the server, even one that has just answered a
    SYN."""
    splice = Splice(Client(**PLAIN))
    answer = splice.at_bridge("A", END, 500)

    case.sends("probed", splice.syn_ack(), _probe(splice, 0))
    case.drops("unknown_flow", answer)
    case.wait(1000)
    case.sends("reset", splice.syn_ack(), _probe(splice, 0), splice.reset_to_server())
    case.sends("reset", answer, splice.reset_to_client(seq=500))


@book.case(foreign_servers=(SERVER,))
def a_foreign_server_s_packet_of_no_flow_passes(case: Case) -> None:
    """Where the server is on another host, direct connections come the same way, and pass."""
    splice = Splice(Client(**PLAIN))

    case.passes(splice.from_server("PA", 900, 500, b"data"), splice.from_server("RA", 1, 1),
                splice.syn_ack())
    splice.open(case)
    splice.down(case, "PA", 1, END, b"data")


@book.case(timeouts={"idle": 30})
def an_idle_flow_leaves_after_its_timeout(case: Case) -> None:
    """A flow is kept as long as either side says something within the timeout."""
    splice = Splice(Client(**PLAIN))

    splice.open(case)
    case.wait(29_000)
    splice.down(case, "A", 0, END)
    case.wait(29_000)
    splice.up(case, "A", END, 1)
    case.wait(31_100)
    case.drops("unknown_flow", splice.at_bridge("A", END, 1))


@book.case(max_flows=2)
def a_full_table_gives_up_the_flow_that_was_idle_longest(case: Case) -> None:
    """One flow more than fit evicts an ended one, and only then the longest idle."""
    first, second, third, fourth = (
        Splice(Client(port, **PLAIN)) for port in range(40000, 40004)
    )

    first.open(case)
    case.wait(1000)
    second.open(case)
    case.wait(1000)
    first.up(case, "A", END, 1)
    third.open(case)
    case.drops("unknown_flow", second.at_bridge("A", END, 1))
    _close(case, first)
    fourth.open(case)
    case.drops("unknown_flow", first.at_bridge("A", END + 1, 2))
    third.up(case, "A", END, 1)


@book.case()
def a_stray_packet_does_not_move_a_flow(case: Case) -> None:
    """A packet far outside a flow's numbers, with a cookie that is none, is still that flow's, and
    for the server to judge; the flow goes on as before."""
    splice = Splice(Client(**PLAIN))
    strays: list[tuple[int, int]] = [(1 << 30, 1), (END, 1 << 30), (-(1 << 22), 1)]

    splice.open(case)
    for seq, ack in strays:
        splice.up(case, "A", seq, ack)
    splice.down(case, "A", 1, END, b"data")
    splice.up(case, "A", END, 5)
    stray: Packet = splice.at_bridge("PA", 1 << 29, 1 << 29, b"x")
    case.sends("to_server", stray, splice.at_server("PA", 1 << 29, 1 << 29, b"x"))
