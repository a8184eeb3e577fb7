"""How flows end, and how others begin where they were: on their ports, and in their place."""

from tests.golden.case import Book, Case
from tests.golden.stacks import (
    CLIENT_CLOCK,
    NOP,
    REQUEST,
    SACK_OK,
    Client,
    balancer_config,
    named,
)
from tests.golden.steps import forwards, opens, syn

book = Book("balancer", balancer_config)


@book.case(backends=(1, 2), services=[{"key": "http.path"}], weights={1: 1, 2: 0})
def a_new_connection_on_the_ports_of_an_old_one_starts_afresh(case: Case) -> None:
    """A SYN on a closed flow's ports is answered with a new cookie; its first payload opens a new
    flow over the old entry, even where that was never closed."""
    old, new = Client(timestamps=False), Client(timestamps=False, isn=0x6000_0000)

    opens(case, old)
    forwards(case, old.segment("FA", 500, 9000))
    syn(case, new)
    case.drops("handshake_ack", new.segment("A"))
    opens(case, new)
    forwards(case, new.segment("A", 500, 9000))
    repeated = new.segment("PA", payload=REQUEST)
    forwards(case, repeated)


@book.case(services=[{"scheduler": "round-robin"}], backends=(1, 2))
def a_repeated_first_segment_keeps_its_backend(case: Case) -> None:
    """The first segment sent again goes where it went before, with more data or less; only another
    connection is given to the next backend."""
    client, other = Client(timestamps=False), Client(40001, timestamps=False)

    opens(case, client, 1)
    case.wait(1000)
    forwards(case, client.segment("PA", payload=REQUEST),
              client.segment("PA", payload=REQUEST + b"more"),
              client.segment("FPA", payload=REQUEST[:5]), to=1)
    opens(case, other, 2)
    again = Client(isn=0x6100_0000, timestamps=False)
    syn(case, again)
    opens(case, again, 1)


@book.case(backends=(1, 2), services=[{"key": "http.path"}], weights={1: 1, 2: 0})
def an_upload_is_no_first_payload_whatever_its_numbers(case: Case) -> None:
    """A segment of a flow without timestamps whose numbers happen to fit a cookie opens nothing,
    unless a SYN of just that number has come, or nothing has for a minute, or for two seconds after
    what was said to be the client's end."""
    client = Client(timestamps=False)
    alike = Client(timestamps=False, isn=0x2000_0000)
    later = Client(timestamps=False, isn=0x3000_0000)
    segment = alike.segment("PA", payload=REQUEST)

    opens(case, client)
    forwards(case, segment, client.segment("A", 500, 900), segment)
    syn(case, later)
    forwards(case, segment)
    forwards(case, client.segment("FA", 500, 900), segment)
    case.wait(60_000)
    forwards(case, segment)
    case.wait(4_000)
    forwards(case, segment)
    opens(case, later)
    forwards(case, later.segment("FA", 500, 900), segment, later.segment("FA", 500, 900))
    case.wait(2_000)
    again = Client(timestamps=False, isn=0x2000_0000, syn_at_ms=case.now_ms)
    opens(case, again)
    forwards(case, again.segment("A", 500, 900))
    case.wait(64_000)
    last = Client(timestamps=False, isn=0x3000_0000, syn_at_ms=case.now_ms)
    opens(case, last)


@book.case(backends=(1, 2), services=[{"key": "http.path"}], weights={1: 1, 2: 0})
def a_client_that_has_timestamps_all_of_a_sudden_may_begin_anew(case: Case) -> None:
    """A first payload with timestamps opens a flow over one that has none, and one without over a
    flow that has them where its SYN has come."""
    bare, stamped = Client(timestamps=False), Client(isn=0x2000_0000)
    another = Client(timestamps=False, isn=0x3000_0000)

    opens(case, bare)
    opens(case, stamped)
    forwards(case, another.segment("PA", payload=REQUEST))
    syn(case, another)
    opens(case, another)


@book.case(backends=(1, 2), services=[{"key": "http.path"}], weights={1: 1, 2: 0})
def a_client_that_agreed_on_timestamps_and_shows_none_is_the_old_one(case: Case) -> None:
    """Its SYN had timestamps, its first payload has none, which RFC 7323 forbids: over an open flow
    that has none either it opens nothing, until that is said to be over."""
    old, agreed = Client(timestamps=False), Client(isn=0x2000_0000)
    shows_none = Client(timestamps=False, isn=0x2000_0000)  # the same handshake's

    opens(case, old)
    offered = [("MSS", 1460), SACK_OK, ("Timestamp", (CLIENT_CLOCK, 0)), NOP, ("WScale", 7)]
    answered = [("MSS", 1460), SACK_OK, ("Timestamp", (agreed.t0, CLIENT_CLOCK)), NOP,
                ("WScale", 7)]
    case.sends("syn_answered", agreed.syn(offered), agreed.syn_ack(answered))
    forwards(case, shows_none.segment("PA", payload=REQUEST), old.segment("FA", 500, 900))
    case.wait(2_000)
    opens(case, shows_none)
    forwards(case, shows_none.segment("A", 500, 900))


@book.case(services=[{"scheduler": "least-flows"}], backends=(1, 2, 3))
def the_backend_with_the_fewest_flows_is_chosen(case: Case) -> None:
    """Least-flows fills the backends evenly; flows that reuse ports do not count twice, and those
    that end make room."""
    for port, backend_id in ((40000, 1), (40001, 2), (40002, 3), (40003, 1)):
        opens(case, Client(port, timestamps=port == 40002), backend_id)
    syn(case, Client(40001, isn=5, timestamps=False))
    opens(case, Client(40001, isn=5, timestamps=False), 2)
    opens(case, Client(40004, timestamps=False), 2)
    forwards(case, Client(40002).segment("R", 500, options=[]), to=3)
    case.wait(10_100)
    opens(case, Client(40005, timestamps=False), 3)
    opens(case, Client(40006, timestamps=False), 3)
    opens(case, Client(40007, timestamps=False), 1)


@book.case(timeouts={"idle": 60, "half_closed": 20, "reset": 5})
def a_flow_leaves_after_its_state_s_timeout(case: Case) -> None:
    """An open flow leaves when idle, a half-closed one earlier, a reset one soon; a packet in time
    keeps it. (What names its backend gets there all the same.)"""
    idle, half, reset, busy = (Client(port) for port in range(40000, 40004))
    for client in (idle, half, reset, busy):
        opens(case, client)
    forwards(case, half.segment("FA", 500, 9000, options=[]),
              reset.segment("RA", 500, 9000, options=[]))

    case.wait(4900)
    forwards(case, half.segment("A", 501, 9001, options=[]),
              reset.segment("RA", 501, 9001, options=[]))
    case.wait(5100)
    case.drops("unknown_flow", reset.segment("A", 501, 9001, options=[]))
    forwards(case, busy.segment("A", 500, 9000, options=[]),
              half.segment("A", 501, 9001, options=[]))
    case.wait(20_100)
    case.drops("unknown_flow", half.segment("A", 501, 9001, options=[]))
    forwards(case, busy.segment("A", 500, 9000, options=[]))
    case.wait(30_000)
    case.drops("unknown_flow", idle.segment("A", 500, 9000, options=[]))
    forwards(case, busy.segment("A", 500, 9000, options=[]))


@book.case(timeouts={"idle": 60, "half_closed": 20, "reset": 5})
def no_end_shortens_the_life_of_a_flow_without_timestamps(case: Case) -> None:
    """Anybody can write a RST or FIN, and nothing but the table knows where such a flow goes on: it
    stays until it is idle, whatever says that it has ended."""
    closed, reset = (Client(port, timestamps=False) for port in (40000, 40001))
    for client in (closed, reset):
        opens(case, client)
    forwards(case, closed.segment("FA", 500, 9000), reset.segment("R", 77))

    case.wait(59_900)
    forwards(case, closed.segment("A", 2, 9001), reset.segment("A", 2, 9001))
    case.wait(59_900)
    forwards(case, closed.segment("RA", 501, 9001))
    case.wait(200)
    forwards(case, closed.segment("A", 2, 9001))
    case.drops("unknown_flow", reset.segment("A", 2, 9001))


@book.case(timeouts={"idle": 60, "half_closed": 20, "reset": 5})
def a_later_packet_takes_an_end_back(case: Case) -> None:
    """A flow with timestamps goes on after a RST if anything else comes, and after a FIN if more
    data does."""
    closed, reset = Client(40000), Client(40001)
    for client in (closed, reset):
        opens(case, client)
        forwards(case, client.segment("RF"[client is closed] + "A", 500, 9000, options=[]))
    forwards(case, closed.segment("PA", 2, 9001, payload=b"x", options=[]),
              reset.segment("A", 2, 9001, options=[]))

    case.wait(50_000)
    forwards(case, closed.segment("A", 2, 9001, options=[]),
              reset.segment("A", 2, 9001, options=[]))


@book.case(max_flows=2)
def a_full_table_forgets_the_flow_that_was_idle_longest(case: Case) -> None:
    """A new flow is always entered; the one that has been silent longest gives way, and one that
    was reset before all others."""
    first, second, third, fourth = (Client(port, timestamps=False) for port in range(40000, 40004))

    opens(case, first)
    forwards(case, first.segment("A", 500, 9000))
    case.wait(1000)
    opens(case, second)
    forwards(case, second.segment("A", 500, 9000))
    case.wait(1000)
    forwards(case, first.segment("A", 500, 9000))
    case.wait(1000)
    opens(case, third)
    case.drops("unknown_flow", second.segment("A", 500, 9000))
    forwards(case, third.segment("RA", 500, 9000))
    opens(case, fourth)
    case.drops("unknown_flow", third.segment("A", 500, 9000))
    forwards(case, first.segment("A", 500, 9000))


@book.case(max_flows=3)
def flows_that_sent_nothing_after_their_handoff_go_first(case: Case) -> None:
    """However many new connections fill the table, those that have gone on stay, also when they
    have been idle for long."""
    first, second = (Client(port, timestamps=False) for port in (40000, 40001))

    for client in (first, second):
        opens(case, client)
        forwards(case, client.segment("A", 500, 9000))
    case.wait(600_000)
    for port in range(41000, 41010):
        opens(case, Client(port, timestamps=False, syn_at_ms=case.now_ms))
    forwards(case, first.segment("A", 500, 9000), second.segment("A", 500, 9000))
    case.drops("unknown_flow", Client(41000, timestamps=False).segment("A", 500, 9000))


@book.case()
def a_reset_ends_a_flow_and_reaches_its_backend(case: Case) -> None:
    """A client's reset is forwarded, with timestamps or without, with ACK or without."""
    for port, flags in ((40000, "R"), (40001, "RA")):
        client = Client(port)
        opens(case, client)
        forwards(case, client.segment(flags, 500, 9000, options=[]),
                  client.segment(flags, 500, 9000, ts=(CLIENT_CLOCK, named(1, 40))))
