"""Segments that wait for the rest of their key: in what order they leave, and how long they stay.

The key lies in the Host header, behind octets that any bound can cut off.
"""

from tests.golden.case import Book, Case
from tests.golden.stacks import (
    CLIENT_CLOCK,
    VIP,
    Client,
    balancer_config,
    named,
    to_bridge,
    whole,
)

book = Book("balancer", balancer_config)
KEY = {"key": "http.host"}
REQUEST = b"GET /hold HTTP/1.1\r\nAccept: text/html\r\nHost: h.example\r\n\r\n"
FIRST, SECOND, THIRD = REQUEST[:20], REQUEST[20:40], REQUEST[40:]


def _parts(client: Client, flags: str = "PA") -> tuple:
    """The request in three segments, and then as the bridge gets them."""
    return tuple(
        client.segment(flags, seq, payload=part)
        for seq, part in ((1, FIRST), (21, SECOND), (41, THIRD))
    )


def _reset(client: Client) -> object:
    """The reset that a client's stack accepts as the answer to its first segments."""
    return whole(src=VIP, dst=client.address, sport=80, dport=client.port,
                 seq=client.cookie_isn + 1, flags="R")


@book.case(services=[KEY])
def held_segments_leave_in_order_once_the_key_is_whole(case: Case) -> None:
    """Segments are held, unacknowledged, until the last part of the key has come; then all leave in
    the order of the stream, each with the same echo, but that the first proves whom it is for."""
    client = Client()
    first, second, third = _parts(client)

    case.holds(first)
    case.wait(10)
    case.holds(second)
    case.wait(10)
    case.sends("handoff", third,
               to_bridge(first, tsecr=client.handed(1, 1)),
               *(to_bridge(part, tsecr=named(1, 1)) for part in (second, third)))


@book.case(services=[KEY])
def segments_after_a_gap_wait_for_it_to_be_filled(case: Case) -> None:
    """A third segment that overtakes the second is held as well, and they leave in order."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)

    case.holds(first, third)
    case.sends("handoff", second, *map(to_bridge, (first, second, third)))


@book.case(services=[KEY])
def segments_before_the_first_are_sent_again(case: Case) -> None:
    """Segments that come before the first belong to no flow yet; the first is held and waits for
    their retransmission."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)

    case.drops("unknown_flow", third, second)
    case.holds(first)
    case.wait(200)
    case.holds(second)
    case.sends("handoff", third, *map(to_bridge, (first, second, third)))


@book.case(services=[KEY])
def a_client_that_repeats_itself_is_acknowledged(case: Case) -> None:
    """A client that sends again what is held may have lost the rest, which it will not send before
    it hears of the first: all up to the gap is acknowledged, and leaves joined."""
    client = Client()
    first, second, third = _parts(client)

    case.holds(first)
    case.wait(200)
    case.sends("acknowledged", first, client.taken(FIRST))
    case.sends("acknowledged", second, client.taken(FIRST + SECOND))
    case.sends("acknowledged", second, client.taken(FIRST + SECOND))
    case.sends("handoff", third,
               to_bridge(client.joined(FIRST + SECOND), tsecr=client.handed(1, 1)),
               to_bridge(third, tsecr=named(1, 1)))
    answered = client.segment("A", 60, 9, ts=(CLIENT_CLOCK, named(1, 5)))
    case.sends("forwarded", answered, to_bridge(answered))


@book.case(services=[KEY])
def a_repeated_segment_after_a_gap_is_answered_with_what_is_missing(case: Case) -> None:
    """Only the octets before the gap are acknowledged, again and again, and SACK blocks name what
    came behind it, the latest first; it is kept as it came."""
    client = Client(wscale=None, isn=0xFFFF_FFD0)  # the blocks lie across the wrap
    first = client.segment("PA", 1, payload=FIRST)
    rest = [client.segment("PA", 1 + at, payload=REQUEST[at:at + 6]) for at in range(20, 56, 6)]
    _, behind, touching, _, far, _ = rest

    case.holds(first, behind)
    case.sends("acknowledged", behind, client.taken(FIRST, (27, 33)))
    case.sends("acknowledged", far, client.taken(FIRST, (45, 51), (27, 33)))
    case.sends("acknowledged", first, client.taken(FIRST, (27, 33), (45, 51)))
    case.sends("acknowledged", touching, client.taken(FIRST, (27, 39), (45, 51)))
    case.sends("acknowledged", rest[0], client.taken(REQUEST[:38], (45, 51)))
    case.sends("acknowledged", rest[3], client.taken(REQUEST[:50]))
    case.sends("handoff", client.segment("PA", 51, payload=REQUEST[50:]),
               to_bridge(client.joined(REQUEST[:50]), tsecr=client.handed(1, 1)),
               to_bridge(client.segment("PA", 51, payload=REQUEST[50:]), tsecr=named(1, 1)))
    answered = client.segment("A", 60, 9, ts=(CLIENT_CLOCK, named(1, 5)))
    case.sends("forwarded", answered, to_bridge(answered))


@book.case(services=[KEY])
def a_client_without_sack_hears_only_what_is_missing(case: Case) -> None:
    """A client that did not offer SACK gets no blocks, whatever lies behind the gap."""
    client = Client(timestamps=False, sack=False, wscale=None)
    first, _, third = _parts(client)

    case.holds(first)
    case.sends("acknowledged", first, client.taken(FIRST))
    case.sends("acknowledged", third, client.taken(FIRST))


@book.case(services=[{**KEY, "hold": {"octets": 115}}])
def at_the_bound_on_octets_nothing_behind_a_gap_is_kept(case: Case) -> None:
    """What lies behind a gap and exceeds the bound decides nothing: it is forgotten, and the
    client, which has to fill the gap first, sends it again."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)

    case.holds(first)
    case.sends("acknowledged", third, client.taken(FIRST))
    case.sends("acknowledged", second, client.taken(FIRST + SECOND))
    case.sends("handoff", third, to_bridge(client.joined(FIRST + SECOND)), to_bridge(third))
    answered = client.segment("A", 60, 9)
    case.sends("forwarded", answered, to_bridge(answered))


@book.case(services=[KEY])
def what_was_acknowledged_is_repeated_until_the_server_answers(case: Case) -> None:
    """The client does not send acknowledged octets again, so the balancer does, after 200, 600 and
    1400 ms, until the client acknowledges something of the server's."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)
    handoff = to_bridge(client.joined(FIRST + SECOND)), to_bridge(third)
    silent = client.segment("A", 60)
    answered = client.segment("A", 60, 9)

    case.holds(first)
    case.sends("acknowledged", first, client.taken(FIRST))
    case.sends("acknowledged", second, client.taken(FIRST + SECOND))
    case.sends("handoff", third, *handoff)
    case.timers_send(200, *handoff)
    case.sends("forwarded", silent, to_bridge(silent))
    case.timers_send(400, *handoff)
    case.timers_send(800, *handoff)
    case.sends("forwarded", answered, to_bridge(answered))
    case.wait(1600)
    case.sends("forwarded", answered, to_bridge(answered))


@book.case(services=[KEY])
def what_was_acknowledged_is_repeated_only_so_often(case: Case) -> None:
    """After 200, 600, 1400, 3000 and 6200 ms a server that has answered nothing has the octets, or
    never will."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)
    handoff = to_bridge(client.joined(FIRST + SECOND)), to_bridge(third)

    case.holds(first)
    case.sends("acknowledged", first, client.taken(FIRST))
    case.sends("acknowledged", second, client.taken(FIRST + SECOND))
    case.sends("handoff", third, *handoff)
    for wait_ms in (200, 400, 800, 1600, 3200):
        case.timers_send(wait_ms, *handoff)
    case.wait(20_000)
    case.sends("forwarded", third, to_bridge(third))


@book.case(services=[KEY])
def what_was_acknowledged_is_not_repeated_for_ever_beside_a_flood(case: Case) -> None:
    """A client of which 256 packets have come, none of which acknowledges anything of the server's,
    is looked at no longer."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)
    handoff = to_bridge(client.joined(FIRST + SECOND)), to_bridge(third)
    silent = client.segment("A", 60)

    case.holds(first)
    case.sends("acknowledged", first, client.taken(FIRST))
    case.sends("acknowledged", second, client.taken(FIRST + SECOND))
    case.sends("handoff", third, *handoff)
    for _ in range(256):
        case.sends("forwarded", silent, to_bridge(silent))
    case.wait(7000)


@book.case(services=[KEY])
def a_reset_ends_the_repetition_of_what_was_acknowledged(case: Case) -> None:
    """A client that resets is of no server's interest any more."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)
    reset = client.segment("R", 60)

    case.holds(first)
    case.sends("acknowledged", first, client.taken(FIRST))
    case.sends("acknowledged", second, client.taken(FIRST + SECOND))
    case.sends("handoff", third, to_bridge(client.joined(FIRST + SECOND)), to_bridge(third))
    case.sends("forwarded", reset, to_bridge(reset))
    case.wait(2000)
    case.sends("forwarded", reset, to_bridge(reset))


@book.case(services=[KEY])
def overlapping_segments_leave_as_they_came(case: Case) -> None:
    """A retransmission that is cut elsewhere overlaps what is held; the key is read across them,
    and all of them leave."""
    client = Client(timestamps=False)
    first = client.segment("PA", 1, payload=REQUEST[:30])
    over = client.segment("PA", 11, payload=REQUEST[10:45])
    rest = client.segment("PA", 40, payload=REQUEST[39:])

    case.holds(first, over)
    case.sends("handoff", rest, *map(to_bridge, (first, over, rest)))


@book.case(services=[KEY])
def a_first_segment_that_comes_again_with_more_completes_the_key(case: Case) -> None:
    """A client that sends its first octets again together with the rest opens the flow by it."""
    client = Client(timestamps=False)
    first = client.segment("PA", 1, payload=FIRST)
    all_of_it = client.segment("PA", 1, payload=REQUEST)

    case.holds(first)
    case.sends("handoff", all_of_it, *map(to_bridge, (first, all_of_it)))


@book.case(services=[KEY])
def a_fin_ends_the_waiting(case: Case) -> None:
    """After a FIN no more octets come: what is there decides, whether the FIN came with data or
    alone."""
    one, other = Client(timestamps=False), Client(40001, timestamps=False)
    first, last = one.segment("PA", payload=FIRST), one.segment("FPA", 21, payload=SECOND)
    alone = other.segment("PA", payload=FIRST)
    fin = other.segment("FA", 21)

    case.holds(first)
    case.sends("handoff", last, *map(to_bridge, (first, last)))
    case.holds(alone)
    case.sends("handoff", fin, *map(to_bridge, (alone, fin)))


@book.case(services=[KEY])
def a_bare_ack_says_nothing_while_segments_are_held(case: Case) -> None:
    """A window update of a held flow is dropped: there is nobody to tell."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)

    case.holds(first)
    case.drops("handshake_ack", client.segment("A", 21, window=600), client.segment("A"))
    case.holds(second)
    case.sends("handoff", third, *map(to_bridge, (first, second, third)))


@book.case(services=[KEY])
def a_reset_lets_held_segments_go(case: Case) -> None:
    """A client that resets while its segments are held leaves nothing behind: the rest follows no
    flow."""
    client = Client(timestamps=False)
    first, second, _ = _parts(client)

    case.holds(first)
    case.drops("reset_unanswered", client.segment("R", 21))
    case.drops("unknown_flow", second)
    case.wait(4000)
    case.sends("reset", second, _reset(client))


@book.case(services=[KEY])
def a_new_connection_takes_the_place_of_held_segments(case: Case) -> None:
    """A new first segment on the same ports belongs to a new connection; what was held of the old
    one is forgotten."""
    old = Client(timestamps=False)
    new = Client(timestamps=False, isn=0x5555_0000)
    old_first, _, old_third = _parts(old)
    first, second, third = _parts(new)

    case.holds(old_first, old_third, first, second)
    case.sends("handoff", third, *map(to_bridge, (first, second, third)))


@book.case(services=[{**KEY, "hold": {"segments": 2}}])
def at_the_bound_on_segments_what_is_there_decides(case: Case) -> None:
    """When as many segments as may be are held, they go to the backend that the fallback chooses,
    and the rest follows them."""
    client = Client()
    first, second, third = _parts(client)

    case.holds(first)
    case.sends("handoff", second,
               to_bridge(first, tsecr=client.handed(1, 1)),
               to_bridge(second, tsecr=named(1, 1)))
    case.sends("forwarded", third, to_bridge(third, tsecr=named(1, 1)))


@book.case(services=[{**KEY, "hold": {"segments": 2, "policy": "reset"}}])
def at_the_bound_on_segments_the_client_is_reset(case: Case) -> None:
    """With the policy `reset` the client of an endless request gets a reset that its stack
    accepts, and nothing is left of the flow."""
    client = Client()
    first, second, third = _parts(client)

    case.holds(first)
    case.sends("reset", second, _reset(client))
    case.drops("unknown_flow", third)


@book.case(services=[{**KEY, "hold": {"octets": 140}}])
def at_the_bound_on_octets_what_is_there_decides(case: Case) -> None:
    """The bound on octets counts whole packets, of 60 octets and of 80 here."""
    client = Client(timestamps=False)
    first, second, _ = _parts(client)
    large = client.segment("PA", 41, payload=b"x: " + b"y" * 37)

    assert (len(first), len(second), len(large)) == (60, 60, 80)
    case.holds(first, second)
    case.sends("handoff", large, *map(to_bridge, (first, second, large)))


@book.case(services=[KEY], hold_octets_total=5000)
def at_the_bound_over_all_flows_the_oldest_is_decided(case: Case) -> None:
    """Memory over all flows is bounded, too: a segment for which there is none left lets the oldest
    flow go, by what is there of it, and the others stay."""
    one, other = Client(timestamps=False), Client(40001, timestamps=False)
    first, second, _ = _parts(one)
    other_first, other_second, other_third = _parts(other)

    case.holds(first, other_first)
    case.holds_and_sends(other_second, to_bridge(first))
    case.sends("forwarded", second, to_bridge(second))
    case.sends("handoff", other_third, *map(to_bridge, (other_first, other_second, other_third)))


@book.case(services=[KEY])
def a_client_that_sends_too_many_useless_packets_is_decided(case: Case) -> None:
    """Of copies, of bare ACKs and of what is too much behind a gap 64 are borne: whoever sends more
    is not waited for, and what was acknowledged is not repeated for it."""
    client = Client(timestamps=False)
    first, second, _ = _parts(client)

    case.holds(first)
    case.drops("handshake_ack", *[client.segment("A")] * 62)
    case.sends("acknowledged", first, client.taken(FIRST))
    case.sends("handoff", client.segment("A"), to_bridge(client.joined(FIRST)))
    case.wait(7000)
    case.sends("forwarded", second, to_bridge(second))


@book.case(services=[KEY])
def few_segments_behind_a_gap_are_kept(case: Case) -> None:
    """Of what comes behind a gap sixteen segments are kept. The rest of it the client, which has to
    fill the gap first, sends again."""
    client = Client(timestamps=False, sack=False)
    first, _, _ = _parts(client)
    behind = [client.segment("PA", 22 + at, payload=REQUEST[21 + at:22 + at]) for at in range(18)]

    case.holds(first, *behind[:7])
    for kept in behind[7:]:
        case.sends("acknowledged", kept, client.taken(FIRST))
    case.sends("acknowledged", client.segment("PA", 21, payload=REQUEST[20:21]),
               client.taken(REQUEST[:37]))


@book.case(services=[KEY])
def in_overlaps_the_octets_that_came_first_are_hashed_and_forwarded(case: Case) -> None:
    """A client that sends other octets a second time changes nothing: a copy is not kept, and of a
    segment that goes on only what is new is read, here as by the server."""
    client = Client(timestamps=False)
    first, _, third = _parts(client)
    other = client.segment("PA", 1, payload=b"X" * 20 + SECOND)

    case.holds(first, other)
    case.sends("acknowledged", client.segment("PA", 21, payload=b"Y" * 20),
               client.taken(FIRST + SECOND))
    case.sends("handoff", third, to_bridge(client.joined(FIRST + SECOND)), to_bridge(third))
    answered = client.segment("A", 60, 9)
    case.sends("forwarded", answered, to_bridge(answered))


@book.case(services=[{**KEY, "hold": {"time": 3}}])
def at_the_bound_on_time_what_is_there_decides(case: Case) -> None:
    """Three seconds after its first segment a flow is handed over by a timer, and what comes later
    follows it."""
    client = Client(timestamps=False)
    first, second, third = _parts(client)

    case.holds(first)
    case.wait(1500)
    case.holds(second)
    case.timers_send(1500, *map(to_bridge, (first, second)))
    case.wait(50)
    case.sends("forwarded", third, to_bridge(third))


@book.case(services=[{**KEY, "hold": {"time": 0.5, "policy": "reset"}}])
def at_the_bound_on_time_the_client_is_reset(case: Case) -> None:
    """With the policy `reset` a timer resets a client whose request does not come to its end."""
    client = Client(timestamps=False)
    first, second, _ = _parts(client)

    case.holds(first)
    case.timers_send(500, _reset(client))
    case.drops("unknown_flow", second)


@book.case(services=[KEY])
def waiting_does_not_count_as_round_trip(case: Case) -> None:
    """The handshake's round trip ends with the first segment, however long the rest of the key
    takes to come."""
    client = Client()
    first, second, third = _parts(client)

    case.wait(20)
    case.holds(first)
    case.wait(150)
    case.holds(second)
    case.wait(150)
    case.sends("handoff", third,
               to_bridge(first, tsecr=client.handed(1, 20)),
               *(to_bridge(part, tsecr=named(1, 20)) for part in (second, third)))
    ack = client.segment("A", 60, 9, ts=(CLIENT_CLOCK, named(1, 400)))
    case.sends("forwarded", ack, to_bridge(ack))
