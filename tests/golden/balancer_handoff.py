"""What follows the handshake: the ACK is consumed, and the first payload is the handoff."""

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet

from tests.golden.case import SECRET, START_MS, Book, Case
from tests.golden.stacks import (
    CLIENT_CLOCK,
    EPOCH_MS,
    REQUEST,
    VIP,
    Client,
    balancer_config,
    changed,
    named,
    timestamps,
    to_bridge,
    whole,
)
from tests.golden.steps import forwards, opens, syn

book = Book("balancer", balancer_config)
OTHER_SECRET = bytes(range(100, 116))
UNKNOWN_SECRET = bytes(16)


@book.case()
def the_ack_that_completes_the_handshake_is_consumed(case: Case) -> None:
    """The client's bare ACK is checked and goes no further, with timestamps or without; so does a
    window update before the request."""
    client, plain = Client(), Client(40001, timestamps=False)

    case.drops("handshake_ack", client.segment("A"), plain.segment("A"),
               client.segment("A", window=600))


@book.case()
def the_first_payload_is_the_handoff(case: Case) -> None:
    """The first segment with data travels as it is, but for its destination, DSCP, TTL, and its
    echo of T0, which becomes the backend's id, 14 bits that prove whom it is for, and the
    handshake's round trip."""
    client = Client(port=50123, isn=77)
    proof = client.proof("192.168.33.20")
    arrived = whole(
        src="192.168.33.1", dst=VIP, tos=0, ttl=64, id=4711, sport=50123, dport=80,
        seq=78, ack=client.cookie_isn + 1, flags="PA", window=502,
        options=timestamps(CLIENT_CLOCK, client.t0), payload=REQUEST,
    )
    expected = whole(
        src="192.168.33.1", dst="192.168.33.20", tos=3 << 2, ttl=63, id=4711, sport=50123,
        dport=80, seq=78, ack=client.cookie_isn + 1, flags="PA", window=502,
        options=timestamps(CLIENT_CLOCK, (1 << 24) + proof + 25), payload=REQUEST,
    )

    case.drops("handshake_ack", client.segment("A"))
    case.wait(25)
    case.sends("handoff", arrived, expected)


@book.case()
def a_handoff_without_timestamps_keeps_its_numbers(case: Case) -> None:
    """Where no timestamps were agreed on, destination, DSCP and TTL are all that changes."""
    client = Client(timestamps=False)
    request = client.segment("PA", payload=REQUEST)

    case.sends("handoff", request, to_bridge(request))
    case.wait(500)
    case.sends("forwarded", request, to_bridge(request))


@book.case()
def the_round_trip_is_between_1_and_333_ms(case: Case) -> None:
    """A handshake of no time counts as 1 ms, one of more than 333 as 333; the first segment sent
    again, however late, gets the same echo as the first time. The clock that is told has 10 bits:
    what comes after more than a second has one of these round trips, too."""
    for port, elapsed, echo in ((40000, 0, 1), (40001, 1, 1), (40002, 2, 2), (40003, 333, 333),
                                (40004, 334, 333), (40005, 1023, 333), (40006, 1024, 1),
                                (40007, 5000, 333), (40008, 5130, 10)):
        client = Client(port, syn_at_ms=case.now_ms)
        request = client.segment("PA", payload=REQUEST)
        case.wait(elapsed)
        case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, echo)))
        case.wait(1000)
        case.sends("forwarded", request, to_bridge(request, tsecr=client.handed(1, echo)))


@book.case()
def the_round_trip_is_right_across_the_wrap_of_the_clock(case: Case) -> None:
    """T0's clock has 10 bits; a handshake that sees them wrap has its true round trip all the
    same."""
    case.wait(-START_MS % (1 << 10) - 10)
    client = Client(syn_at_ms=case.now_ms)
    request = client.segment("PA", payload=REQUEST)

    case.wait(40)
    case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 40)))


@book.case(backends=(1, 2, 3), weights={1: 0, 2: 0})
def every_echo_of_t0_names_the_backend(case: Case) -> None:
    """All that the client sends before it hears from the server echoes T0, and every echo is moved
    alike, also what comes late, but only the first segment proves whom it is for; echoes of the
    server's own clock are left as they are."""
    client = Client()
    first = client.segment("PA", payload=REQUEST)
    second = client.segment("PA", 1 + len(REQUEST), payload=b"more")

    case.wait(30)
    case.sends("handoff", first, to_bridge(first, 3, tsecr=client.handed(3, 30)))
    case.sends("forwarded", second, to_bridge(second, 3, tsecr=named(3, 30)))
    late = client.segment("A", 5 + len(REQUEST), ts=(CLIENT_CLOCK + 40, client.t0 + 1))
    case.sends("forwarded", late, to_bridge(late, 3, tsecr=named(3, 31)))
    answered = client.segment("A", 50, 900, ts=(CLIENT_CLOCK + 60, named(3, 65)))
    case.sends("forwarded", answered, to_bridge(answered, 3))
    old = client.segment("A", 50, 900, ts=(CLIENT_CLOCK + 61, client.t0))
    case.sends("forwarded", old, to_bridge(old, 3, tsecr=named(3, 30)))


@book.case()
def an_echo_of_nothing_stays_nothing(case: Case) -> None:
    """A TSecr of 0 echoes nothing (a stack that has not seen T0), and is not made into an id once
    the flow is known."""
    client = Client()
    request = client.segment("PA", payload=REQUEST)
    silent = client.segment("A", 1 + len(REQUEST), ts=(CLIENT_CLOCK, 0))

    case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 1)))
    case.sends("forwarded", silent, to_bridge(silent))


@book.case()
def a_cookie_of_the_previous_epoch_opens_a_flow(case: Case) -> None:
    """A handshake may take a minute: a cookie of the epoch before this one is good."""
    client = Client(timestamps=False)
    request = client.segment("PA", payload=REQUEST)

    case.wait(EPOCH_MS + EPOCH_MS - START_MS % EPOCH_MS - 1)
    case.sends("handoff", request, to_bridge(request))


@book.case()
def a_cookie_of_the_next_epoch_opens_a_flow(case: Case) -> None:
    """The balancer that made the cookie may have a clock that is some seconds ahead of ours: in the
    last 16 s of an epoch the next one is good too, and not before."""
    early = Client(40001, timestamps=False, syn_at_ms=START_MS + EPOCH_MS)
    client = Client(timestamps=False, syn_at_ms=START_MS + EPOCH_MS)
    request = client.segment("PA", payload=REQUEST)

    case.wait(EPOCH_MS - START_MS % EPOCH_MS - 16_001)
    case.drops("unknown_flow", early.segment("PA", payload=REQUEST))
    case.wait(1)
    case.sends("handoff", request, to_bridge(request))


@book.case()
def a_cookie_that_is_too_old_opens_nothing(case: Case) -> None:
    """Two epochs later a cookie is no longer one; nor is one from two epochs ahead."""
    stale = Client(timestamps=False)
    ahead = Client(40001, timestamps=False, syn_at_ms=START_MS + 4 * EPOCH_MS)

    case.wait(2 * EPOCH_MS - START_MS % EPOCH_MS)
    case.drops("unknown_flow", stale.segment("A"), ahead.segment("A"))
    case.drops("unknown_flow", stale.segment("PA", payload=REQUEST),
               ahead.segment("PA", payload=REQUEST))


@book.case()
def a_wrong_cookie_opens_nothing(case: Case) -> None:
    """A cookie is good for one client number, one set of options, both addresses, both ports and
    the secret; if any differs, nothing opens."""
    client = Client(timestamps=False)
    request = client.segment("PA", payload=REQUEST)
    cookie = client.cookie_isn
    guess = client.segment("PA", payload=REQUEST, ack=1 + 0x100)

    case.drops(
        "unknown_flow",
        guess,
        changed(request, sport=40001),
        changed(request, src="192.168.33.2"),
        changed(request, seq=client.isn + 2),
        changed(request, ack=cookie + 2 ** 31 & 0xFFFFFFFF),
        Client(40002, timestamps=False, secret=UNKNOWN_SECRET).segment("PA", payload=REQUEST),
    )


@book.case(backends=(1, 2), weights={2: 0})
def a_first_payload_that_echoes_anything_else_opens_nothing(case: Case) -> None:
    """A client with timestamps echoes T0. With a good cookie and another echo, be it of another
    handshake or one that names a backend, a first payload opens nothing and goes nowhere, nor does
    an ACK or a FIN complete a handshake; the right one still does."""
    client = Client()
    request = client.segment("PA", payload=REQUEST)
    other = Client(isn=0x2000_0000)
    echoes = (client.t0 ^ 1 << 10, client.t0 ^ 1 << 23, client.t0 + (1 << 24), other.t0, 0,
              START_MS % (1 << 22), named(1, 5), named(2, 5), named(2, 20_000),
              client.handed(1, 5), client.handed(2, 5))

    for echo in echoes:
        case.drops("bad_echo", *(
            client.segment(flags, payload=payload, ts=(CLIENT_CLOCK, echo))
            for flags, payload in (("PA", REQUEST), ("FPA", REQUEST))
        ))
        if echo < 1 << 24:  # else a bridge sees that it is no connection's
            case.drops("bad_echo", client.segment("A", ts=(CLIENT_CLOCK, echo)),
                       client.segment("FA", ts=(CLIENT_CLOCK, echo)))
    case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 1)))


@book.case(backends=(1, 2), weights={2: 0})
def a_flow_that_was_taken_over_does_not_choose_for_a_first_payload(case: Case) -> None:
    """Packets that name a backend enter a flow there; nothing else speaks for it, so a first
    payload without timestamps opens a flow of its own, where the scheduler says."""
    client = Client()
    for step in range(4):
        packet = client.segment("A", ts=(CLIENT_CLOCK, named(2, 2000 + step)))
        case.sends("forwarded" if step == 3 else "takeover", packet, to_bridge(packet, 2))
        case.wait(10)

    request = client.segment("PA", payload=REQUEST, options=[])
    case.sends("handoff", request, to_bridge(request, 1))


@book.case()
def a_flow_gives_way_to_no_guess_beyond_the_bound(case: Case) -> None:
    """A flow without timestamps may give way to a new connection when it has been idle. Beyond the
    bound on guesses it does not, so its own segments go on; after a SYN, which says that a new one
    is likely, they are dropped until there is a guess to spare."""
    old, other, stranger = (Client(port, timestamps=False) for port in (40000, 40001, 40002))
    new = Client(isn=0x3000_0000, timestamps=False, syn_at_ms=START_MS + EPOCH_MS)
    request = new.segment("PA", payload=REQUEST)

    opens(case, old)
    opens(case, other)
    case.wait(EPOCH_MS)
    for guess in range(250):
        case.drops("unknown_flow",
                   stranger.segment("PA", ack=1 + 0x100 * (1 + guess), payload=b"x"))
    forwards(case, other.segment("PA", 1 + len(REQUEST), 500, payload=b"x"))
    syn(case, new)
    case.drops("guesses_limited", request)
    case.wait(100)
    case.sends("handoff", request, to_bridge(request))


@book.case()
def another_time_in_t0_is_as_good(case: Case) -> None:
    """A SYN that was sent again has another T0, with the same proof and another clock: either is
    echoed, and tells the round trip."""
    for port, after_ms in ((40000, 0), (40001, 700)):
        client = Client(port)
        request = client.segment("PA", payload=REQUEST, ts=(CLIENT_CLOCK, client.t0_at(
            START_MS + after_ms)))
        case.wait(after_ms)
        case.wait(20)
        case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 20 + 20 * (
            port - 40000))))


@book.case(accept_version_1=True)
def what_a_balancer_of_version_1_has_answered_is_handed_over(case: Case) -> None:
    """While a cluster is being upgraded, a first payload may echo a clock of 22 bits, which is all
    that T0 was; it may not while it names a backend, or has more bits."""
    client = Client()
    t0 = START_MS % (1 << 22)

    for echo in ((1 << 22) + 5, named(1, 5), 0):
        case.drops("bad_echo", client.segment("PA", payload=REQUEST, ts=(CLIENT_CLOCK, echo)))
    case.wait(30)
    request = client.segment("PA", payload=REQUEST, ts=(CLIENT_CLOCK, t0))
    case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 30)))


@book.case()
def wrong_cookies_without_timestamps_are_borne_up_to_a_rate(case: Case) -> None:
    """250 first segments that have nothing to show but a wrong cookie are looked at in a tenth of a
    second; until the next one, none without timestamps opens anything. Those with timestamps, flows
    that are known, and other services are not concerned."""
    stranger, known = Client(39999, timestamps=False), Client(40000, timestamps=False)
    late, stamped = Client(40001, timestamps=False), Client(40002)
    request = known.segment("PA", payload=REQUEST)

    case.sends("handoff", request, to_bridge(request))
    for guess in range(250):
        case.drops("unknown_flow", stranger.segment("PA", ack=1 + 0x100 * (1 + guess),
                                                    payload=b"x"))
    request = late.segment("PA", payload=REQUEST)
    case.drops("guesses_limited", request, stranger.segment("PA", payload=b"x"))
    case.drops("handshake_ack", late.segment("A"))
    more = known.segment("PA", 1 + len(REQUEST), payload=b"x")
    case.sends("forwarded", more, to_bridge(more))
    proven = stamped.segment("PA", payload=REQUEST)
    case.sends("handoff", proven, to_bridge(proven, tsecr=stamped.handed(1, 1)))
    case.wait(100)
    case.sends("handoff", request, to_bridge(request))


@book.case(secrets=(OTHER_SECRET, SECRET))
def a_cookie_under_the_previous_secret_opens_a_flow(case: Case) -> None:
    """While keys rotate, cookies under either are good, of this epoch and of the one before."""
    old = Client(timestamps=False).segment("PA", payload=REQUEST)
    new = Client(40001, timestamps=False, secret=OTHER_SECRET).segment("PA", payload=REQUEST)
    older = Client(40002, timestamps=False, syn_at_ms=START_MS - EPOCH_MS)
    other = Client(40003, timestamps=False, secret=UNKNOWN_SECRET)

    case.sends("handoff", old, to_bridge(old))
    case.sends("handoff", new, to_bridge(new))
    request = older.segment("PA", payload=REQUEST)
    case.sends("handoff", request, to_bridge(request))
    case.drops("unknown_flow", other.segment("PA", payload=REQUEST))


@book.case()
def data_without_ack_opens_nothing(case: Case) -> None:
    """Without the ACK flag the acknowledgment number means nothing, even if it fits."""
    client = Client(timestamps=False)

    case.drops("unknown_flow", client.segment("P", payload=REQUEST))
    case.drops("unknown_flow", client.segment("", payload=REQUEST))
    case.drops("unknown_flow", client.segment("FPU", payload=REQUEST))


@book.case()
def a_second_segment_that_overtakes_the_first_waits_for_it(case: Case) -> None:
    """A second segment that comes first follows no cookie and is dropped; the first opens the
    flow, and the second comes again."""
    client = Client()
    first = client.segment("A", payload=REQUEST)
    second = client.segment("PA", 1 + len(REQUEST), payload=b"body")

    case.drops("unknown_flow", second)
    case.sends("handoff", first, to_bridge(first, tsecr=client.handed(1, 1)))
    case.wait(200)
    case.sends("forwarded", second, to_bridge(second, tsecr=named(1, 1)))


@book.case()
def a_fin_without_a_request_is_answered(case: Case) -> None:
    """A client that connects and closes without a word gets its FIN acknowledged with ours, and
    keeps no state anywhere; its last ACK is dropped."""
    client, plain = Client(), Client(40001, timestamps=False)
    echo = timestamps(client.t0, CLIENT_CLOCK)

    case.sends("fin_answered", client.segment("FA"),
               client.reply("FA", 1, 2, window=65535, options=echo))
    case.drops("unknown_flow", client.segment("A", 2, 2))
    case.sends("fin_answered", plain.segment("FA"), plain.reply("FA", 1, 2, window=65535))
    case.drops("unknown_flow", plain.segment("A", 2, 2))


@book.case()
def a_fin_with_the_request_is_part_of_the_handoff(case: Case) -> None:
    """A request and its client's FIN in one segment are handed over together."""
    client = Client()
    request = client.segment("FPA", payload=REQUEST)
    ack = client.segment("A", 2 + len(REQUEST), 500, ts=(CLIENT_CLOCK + 5, named(1, 9)))

    case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 1)))
    case.sends("forwarded", ack, to_bridge(ack))


@book.case()
def a_reset_right_after_the_handshake_is_consumed(case: Case) -> None:
    """A client that resets before it has asked for anything leaves nothing to be told."""
    client = Client()

    case.drops("handshake_ack", client.segment("A"))
    case.drops("reset_unanswered", client.segment("RA"), client.segment("RA", payload=b"x"))


@book.case()
def the_client_keeps_its_own_address_port_and_options(case: Case) -> None:
    """What the balancer does not know, it does not touch: ECN bits, urgent pointer, reserved bits,
    the IP identification, DF clear, and options it has never heard of."""
    client = Client()
    request = client.segment("PAUC", payload=REQUEST, tos=0xB8 | 1, ttl=3, id=65535, urgent=7,
                             ip_flags="")
    request = changed(request, reserved=5)
    other = client.segment(
        "PA", 1 + len(REQUEST), payload=b"x", tos=3, ttl=255,
        options=[*timestamps(CLIENT_CLOCK, client.t0), (253, b"\xf9\x89ab"), ("NOP", None),
                 ("NOP", None)],
    )

    case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 1)))
    case.sends("forwarded", other, to_bridge(other, tsecr=named(1, 1)))


@book.case()
def timestamps_are_found_wherever_they_stand(case: Case) -> None:
    """The TSecr is rewritten in any layout, at an odd offset too, and its checksum stays right."""
    nop, stamp = ("NOP", None), ("Timestamp", ())
    layouts = [
        [stamp], [nop, stamp], [nop, nop, nop, stamp], [stamp, nop, nop],
        [(253, b"\xf9\x89x"), stamp], [("SAck", (5, 6)), stamp, nop],
    ]

    for port, layout in enumerate(layouts, 41000):
        client = Client(port)
        told = ("Timestamp", (CLIENT_CLOCK, client.t0))
        options = [told if each is stamp else each for each in layout]
        request = client.segment("PA", payload=REQUEST, options=options)
        case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 1)))


@book.case(weights={1: 0})
def a_service_without_a_backend_resets_its_clients(case: Case) -> None:
    """Where every backend has weight 0, the first payload is answered with a reset."""
    client = Client()

    case.drops("handshake_ack", client.segment("A"))
    case.sends("no_backend", client.segment("PA", payload=REQUEST),
               whole(src=VIP, dst=client.address, sport=80, dport=client.port,
                     seq=client.cookie_isn + 1, flags="R"))


@book.case()
def what_arrives_damaged_leaves_damaged(case: Case) -> None:
    """Checksums are patched, not reckoned anew (RFC 1624): a checksum that was wrong by some
    amount is wrong by the same amount afterwards, so the server finds out."""
    client = Client()
    request = client.segment("PA", payload=REQUEST)
    expected = to_bridge(request, tsecr=client.handed(1, 1))

    for error in (1, 0x1234, 0xFFFE):
        case.sends("handoff" if error == 1 else "forwarded",
                   _damaged(request, error), _damaged(expected, error))


def _damaged(packet: Packet, error: int) -> Packet:
    """`packet` with a TCP checksum that is too large by `error`, in ones' complement."""
    right = IP(bytes(packet))[TCP].chksum
    return changed(packet, chksum=(right + error) % 0xFFFF)
