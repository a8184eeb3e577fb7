"""Flows after their handoff: forwarded, taken over, contradicted, unknown."""

from scapy.packet import Packet

from tests.golden.case import Book, Case
from tests.golden.stacks import (
    CLIENT_CLOCK,
    NOP,
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
from tests.golden.steps import forwards, opens

book = Book("balancer", balancer_config)
HOUR_MS = 3_600_000
BY_SOURCE = {"key": "source"}


def _reset(client: Client, ack: int) -> Packet:
    """The reset of an unknown flow whose client acknowledges `ack`."""
    return whole(src=VIP, dst=client.address, sport=client.vip_port, dport=client.port,
                 seq=client.cookie_isn + ack, flags="R")


@book.case()
def everything_of_a_flow_goes_to_its_backend(case: Case) -> None:
    """ACKs, window updates, keep-alives with an octet and without, zero-window probes, urgent data,
    more requests: all are forwarded as they are."""
    client = Client(timestamps=False)
    end = 1 + len(REQUEST)

    opens(case, client)
    forwards(
        case,
        client.segment("A", end, 1000),
        client.segment("A", end, 1000, window=0),
        client.segment("A", end, 1000, window=65535),
        client.segment("A", end - 1, 1000),
        client.segment("A", end - 1, 1000, payload=b"\0"),
        client.segment("PAU", end, 1000, payload=b"urgent", urgent=6),
        client.segment("A", end + 6, 1000, payload=b"x" * 1400),
        client.segment("PA", end + 1406, 2000, payload=REQUEST),
    )


@book.case()
def ecn_bits_stay_and_the_dscp_is_replaced(case: Case) -> None:
    """Whatever DSCP a client sends, the bridge gets the service's; the two ECN bits, and the flags
    ECE and CWR, are the client's own."""
    client = Client(timestamps=False)
    end = 1 + len(REQUEST)

    opens(case, client)
    for tos in (0, 1, 2, 3, 0x20, 0xB8, 0xBB, 0xFC, 0xFF):
        forwards(case, client.segment("A", end, 9, tos=tos),
                  client.segment("AEC", end, 9, tos=tos))


@book.case()
def sack_blocks_are_forwarded_untouched(case: Case) -> None:
    """SACK blocks, one to four, are the bridge's business, and pass the balancer as they are."""
    client = Client()
    cookie = client.cookie_isn
    end = 1 + len(REQUEST)

    opens(case, client)
    for count in (1, 2, 3):
        blocks = tuple(cookie + 1000 * edge & 0xFFFFFFFF for edge in range(2, 2 + 2 * count))
        options = [*timestamps(CLIENT_CLOCK, named(1, 9)), NOP, NOP, ("SAck", blocks)]
        forwards(case, client.segment("A", end, 1000, options=options))
    blocks = tuple(cookie + 1000 * edge & 0xFFFFFFFF for edge in range(2, 10))
    forwards(case, client.segment("A", end, 1000, options=[NOP, NOP, ("SAck", blocks)]))


@book.case(backends=(1, 2))
def a_flow_that_nobody_knows_is_taken_over_by_its_echo(case: Case) -> None:
    """A TSecr that names a backend is enough: the packet goes there although the table is empty
    (another balancer opened the flow, or this one was restarted), and no entry is made."""
    client = Client()
    for backend_id in (1, 2, 1):
        for packet in (
            client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(backend_id, 77))),
            client.segment("PA", 500, 9000, REQUEST, ts=(CLIENT_CLOCK, named(backend_id, 0))),
            client.segment("FA", 600, 9000, ts=(CLIENT_CLOCK, named(backend_id, (1 << 24) - 1))),
        ):
            case.sends("takeover", packet, to_bridge(packet, backend_id))


@book.case(backends=(1, 2), weights={1: 1, 2: 0})
def a_backend_that_takes_no_new_flows_keeps_its_own(case: Case) -> None:
    """Weight 0 drains a backend: new flows go elsewhere, and those that name it still reach it."""
    client = Client()
    packet = client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(2, 77)))

    case.sends("takeover", packet, to_bridge(packet, 2))
    opens(case, Client(40001))


@book.case(takeover_rate=16)
def takeovers_are_limited_in_rate(case: Case) -> None:
    """Anybody can write a TSecr, so packets that have nothing else to show are limited to a rate,
    of which a prefix of sources has an eighth; the limit recovers with time, and flows of the table
    are not subject to it."""
    client = Client()
    packet = client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(1, 77)))

    for _ in range(2):
        case.sends("takeover", packet, to_bridge(packet))
    case.drops("takeover_limited", packet)
    opens(case, Client(40001))
    forwards(case, Client(40001).segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(1, 77))))
    case.wait(500)
    case.sends("takeover", packet, to_bridge(packet))
    case.drops("takeover_limited", packet)
    elsewhere = Client(address="192.168.34.1").segment("A", 500, 9000,
                                                       ts=(CLIENT_CLOCK, named(1, 77)))
    case.sends("takeover", elsewhere, to_bridge(elsewhere))


@book.case(takeover_rate=1)
def a_flow_whose_packets_go_on_is_taken_over_for_good(case: Case) -> None:
    """Three packets that go on as one connection's do make a flow of the table, and no limit holds
    for them any more; copies, and what is late, count for nothing. Of such a flow, what names no
    backend gets there as well."""
    client, other = Client(), Client(40001)

    def ack(of: Client, number: int, ms: int) -> Packet:
        return of.segment("A", 500, number, ts=(CLIENT_CLOCK + ms, named(1, ms)))

    case.sends("takeover", ack(client, 9000, 77), to_bridge(ack(client, 9000, 77)))
    case.drops("takeover_limited", ack(client, 9000, 77), ack(client, 8000, 70),
               ack(other, 9000, 77))
    case.sends("takeover", ack(client, 9100, 77), to_bridge(ack(client, 9100, 77)))
    case.drops("takeover_limited", ack(client, 9100, 77), ack(other, 9000, 78))
    case.sends("takeover", ack(client, 9200, 78), to_bridge(ack(client, 9200, 78)))
    case.sends("takeover", ack(other, 9001, 78), to_bridge(ack(other, 9001, 78)))
    forwards(case, ack(client, 9100, 77), ack(client, 9200, 79), ack(other, 9002, 79),
              client.segment("R", 500, options=[]), ack(client, 9300, 80))


@book.case(backends=(1, 2), weights={2: 0})
def an_echo_that_contradicts_the_entry_changes_nothing(case: Case) -> None:
    """The table says backend 1, the echo says 2, and the flow is far too young for the server's
    clock to have come so far: either another balancer gave these ports to 2, or somebody wrote that
    echo. The packet goes to 2, and the entry stays."""
    client = Client(40000)
    reused = Client(40000, isn=0x7777_0000)
    packet = reused.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(2, 30)))

    opens(case, client)
    case.wait(60_000)
    case.sends("takeover", packet, to_bridge(packet, 2))
    for number in range(3):
        packet = reused.segment("A", 501 + number, 9000, ts=(CLIENT_CLOCK, named(2, 30)))
        case.sends("takeover", packet, to_bridge(packet, 2))
    forwards(case, client.segment("PA", 900, payload=b"x", options=[]),
              client.segment("PA", 901, payload=b"x", ts=(CLIENT_CLOCK, named(1, 60_000))))


@book.case(backends=(1, 2), weights={2: 0})
def a_flow_without_timestamps_echoes_nothing(case: Case) -> None:
    """Its client's packets have no timestamps, so one that has is somebody else's, whatever backend
    it names: it goes where the flow is, as all do."""
    client = Client(timestamps=False)

    opens(case, client)
    for backend_id in (1, 2, 2, 2):
        forwards(case, client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(backend_id, 30)),
                                       options=timestamps(CLIENT_CLOCK, named(backend_id, 30))))
    forwards(case, client.segment("A", 500, 9000))


@book.case(backends=(1, 2), weights={2: 0}, timeouts={"idle": 1000000})
def an_old_flow_whose_timestamps_wrapped_stays_where_it_is(case: Case) -> None:
    """After 2^24 ms the server's clock runs into the next id; the table, which knows how old the
    flow is, is right then, up to 2 s of difference between the clocks."""
    client = Client()

    opens(case, client)
    case.wait(1000)
    case.wait(5 * HOUR_MS)
    age_ms = 5 * HOUR_MS + 1000
    assert named(1, age_ms) >> 24 == 2
    forwards(case, client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(1, age_ms))),
              client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(1, age_ms + 2000))))
    beyond = client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(1, age_ms + 2001)))
    case.sends("takeover", beyond, to_bridge(beyond, 2))


@book.case(backends=(1, 3), weights={3: 0}, id_bits=4)
def fewer_bits_of_id_leave_more_to_the_clock(case: Case) -> None:
    """With 4 bits of id the server's clock may run for 37 hours before it runs into the next one:
    what names another backend with 7 bits then still names the same."""
    client, elsewhere = Client(), Client(40001)
    request = client.segment("PA", payload=REQUEST)

    case.sends("handoff", request, to_bridge(request, tsecr=client.handed(1, 1, id_bits=4)))
    for ms in (0, 36 * HOUR_MS, (1 << 27) - 1):
        forwards(case, client.segment("A", 500, 9000,
                                       ts=(CLIENT_CLOCK, named(1, ms, id_bits=4))))
    packet = elsewhere.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(3, 77, id_bits=4)))
    case.sends("takeover", packet, to_bridge(packet, 3))


@book.case()
def an_echo_that_names_nobody_leaves_it_to_the_table(case: Case) -> None:
    """An id that no backend of the service has says nothing: the flow's entry decides, and without
    one the flow is unknown."""
    client, stranger = Client(), Client(40001)

    opens(case, client)
    for backend_id in (2, 127, 128, 255):
        forwards(case, client.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(backend_id, 5))))
        case.drops("unknown_flow",
                   stranger.segment("A", 500, 9000, ts=(CLIENT_CLOCK, named(backend_id, 5))))


@book.case()
def an_unknown_flow_is_dropped_first_and_reset_a_second_later(case: Case) -> None:
    """A packet of no flow may have overtaken the first, so it is dropped; if the flow is still
    unknown a second later it is lost, and the next packet is answered with the reset that its
    sender's stack accepts. Then patience begins anew."""
    client = Client(timestamps=False)
    packet = client.segment("PA", 500, 9000, payload=REQUEST)

    case.drops("unknown_flow", packet)
    case.wait(999)
    case.drops("unknown_flow", packet)
    case.wait(1)
    case.sends("reset", packet, _reset(client, 9000))
    case.drops("unknown_flow", packet)
    case.wait(1000)
    case.sends("reset", packet, _reset(client, 9000))


@book.case()
def a_packet_without_ack_is_reset_with_one(case: Case) -> None:
    """What has no acknowledgment is reset by acknowledging all that it has, FIN included
    (RFC 9293 §3.10.7.1)."""
    client = Client(timestamps=False)
    packet = client.segment("FP", 500, 0, payload=b"four")

    case.drops("unknown_flow", packet)
    case.wait(1000)
    case.sends("reset", packet, whole(
        src=VIP, dst=client.address, sport=80, dport=client.port, seq=0, ack=client.isn + 505,
        flags="RA",
    ))


@book.case()
def an_unknown_flow_that_comes_back_after_a_minute_is_new(case: Case) -> None:
    """What was seen more than a minute ago says nothing about a packet of now."""
    client = Client(timestamps=False)
    packet = client.segment("A", 500, 9000)

    case.drops("unknown_flow", packet)
    case.wait(60_001)
    case.drops("unknown_flow", packet)
    case.wait(1000)
    case.sends("reset", packet, _reset(client, 9000))


@book.case()
def a_reset_of_no_flow_is_never_answered(case: Case) -> None:
    """A reset is never answered with a reset, however often and late it comes."""
    client = Client(timestamps=False)

    for flags in ("R", "RA", "RPA", "RF"):
        case.drops("reset_unanswered", client.segment(flags, 500, 9000))
        case.wait(1500)
        case.drops("reset_unanswered", client.segment(flags, 500, 9000))


@book.case()
def an_unknown_flow_from_an_impossible_source_gets_no_reset(case: Case) -> None:
    """No reset is sent to multicast, loopback or to the VIP itself, whatever comes from there."""
    for source in ("127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", VIP):
        packet = Client(address=source, timestamps=False).segment("PA", 500, 9000, payload=b"x")
        case.drops("bad_source", packet)
        case.wait(1000)
        case.drops("bad_source", packet)


@book.case(services=[{"port": 80}, {"port": 443, "dscp": 11, "key": "source"}])
def flows_of_two_services_are_apart(case: Case) -> None:
    """The same client port towards two ports of the VIP is two flows, each with its service's
    DSCP."""
    web, tls = Client(timestamps=False), Client(timestamps=False, vip_port=443)
    hello = tls.segment("PA", payload=b"\x16\x03\x01")

    opens(case, web)
    case.sends("handoff", hello, to_bridge(hello, dscp=11))
    packet = tls.segment("A", 500, 9000)
    case.sends("forwarded", packet, to_bridge(packet, dscp=11))
    forwards(case, changed(web.segment("A", 500, 9000), window=7))
