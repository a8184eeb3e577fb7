"""The handoff: the cookie that opens a flow, the replayed handshake, and what waits meanwhile."""

from tests.golden.case import SECRET, START_MS, Book, Case
from tests.golden.splice import BRIDGE, SERVER, SERVER_PORT, Splice, bridge_config
from tests.golden.stacks import (
    BRIDGES,
    CLIENT_CLOCK,
    EPOCH_MS,
    MSS_TABLE,
    NOP,
    REQUEST,
    SACK_OK,
    VIP,
    Client,
    changed,
    echoing,
    timestamps,
    whole,
)

book = Book("packetbridge", bridge_config)
OTHER_SECRET = bytes(range(100, 116))
LARGEST_MSS = 3960  # what, with its headers, the packet queue can carry


def _plain(port: int = 40000, **fields: object) -> Splice:
    """A connection without timestamps."""
    return Splice(Client(port, timestamps=False, **fields))


@book.case()
def a_handoff_is_replayed_and_both_sides_are_spliced(case: Case) -> None:
    """From the handoff the bridge makes the client's SYN; the server's answer opens the flow, the
    handoff follows it, and from then on numbers and clocks differ by constants."""
    client = Client(port=50123, isn=77)
    cookie, server_isn = client.cookie_isn, 0xABCD_0000
    client_side = {"src": "192.168.33.1", "sport": 50123}
    handoff = whole(
        **client_side, dst="192.168.33.20", dport=80, tos=3 << 2, ttl=63, id=9, seq=78,
        ack=cookie + 1, flags="PA", window=502, payload=REQUEST,
        options=timestamps(CLIENT_CLOCK, (1 << 24) + client.proof("192.168.33.20") + 25),
    )
    syn = whole(
        **client_side, dst="192.168.33.30", dport=8080, tos=0, ttl=64, id=0, seq=77, flags="S",
        window=64256, options=[("MSS", 1460), SACK_OK, ("Timestamp", (CLIENT_CLOCK, 0)), NOP,
                               ("WScale", 7)],
    )
    syn_ack = whole(
        src="192.168.33.30", sport=8080, dst="192.168.33.1", dport=50123, seq=server_isn, ack=78,
        flags="SA", window=65160, options=[("MSS", 1460), SACK_OK, ("Timestamp",
                                           (5_000_000, CLIENT_CLOCK)), NOP, ("WScale", 7)],
    )
    at_server = whole(
        **client_side, dst="192.168.33.30", dport=8080, tos=0, ttl=62, id=9, seq=78,
        ack=server_isn + 1, flags="PA", window=502, payload=REQUEST,
        options=timestamps(CLIENT_CLOCK, 5_000_000),
    )
    reply = whole(
        src="192.168.33.30", sport=8080, dst="192.168.33.1", dport=50123, id=5, flags="PA",
        seq=server_isn + 1, ack=78 + len(REQUEST), window=509, payload=b"HTTP/1.1 200 OK\r\n\r\n",
        options=timestamps(5_000_003, CLIENT_CLOCK),
    )
    at_client = whole(
        src="192.168.33.10", sport=80, dst="192.168.33.1", dport=50123, id=5, flags="PA",
        seq=cookie + 1, ack=78 + len(REQUEST), window=509, payload=b"HTTP/1.1 200 OK\r\n\r\n",
        options=timestamps((1 << 24) + 25 + 3, CLIENT_CLOCK),
    )

    case.sends("replayed", handoff, syn)
    case.sends("opened", syn_ack, at_server)
    case.sends("to_client", reply, at_client)


@book.case()
def the_replayed_syn_offers_what_the_client_offered(case: Case) -> None:
    """Without timestamps, SACK or window scale, and with nothing but an MSS: the server is offered
    just what the cookie, and the handoff's timestamps, say of the client."""
    mss, stamp = ("MSS", 1460), ("Timestamp", (CLIENT_CLOCK, 0))
    scale = [NOP, ("WScale", 7)]
    for client, options, window in [
        (Client(40001, timestamps=False), [mss, NOP, NOP, SACK_OK, *scale], 64256),
        (Client(40002, sack=False), [mss, NOP, NOP, stamp, *scale], 64256),
        (Client(40003, wscale=None), [mss, SACK_OK, stamp], 502),
        (Client(40004, sack=False, wscale=None), [mss, NOP, NOP, stamp], 502),
        (Client(40005, mss=None, sack=False, wscale=None, timestamps=False), [("MSS", 536)], 502),
    ]:
        splice = Splice(client)
        case.sends("replayed", splice.at_bridge("PA", payload=REQUEST),
                   splice.syn(options, window=window))


@book.case()
def a_health_check_is_told_from_a_clients_handoff(case: Case) -> None:
    """By a TSval that is made with the secret: whoever has another one, be it by a bit, is a
    client."""
    for port, reason, wrong in [(40001, "check", 0), (40002, "replayed", 1)]:
        splice = Splice(Client(port))
        mark = splice.client.check_mark ^ wrong
        case.sends(reason,
                   splice.at_bridge("PA", payload=REQUEST, ms=(mark - CLIENT_CLOCK, 0)),
                   splice.syn([("MSS", 1460), SACK_OK, ("Timestamp", (mark, 0)), NOP,
                               ("WScale", 7)]))
        case.sends("opened", splice.syn_ack(),
                   splice.at_server("PA", payload=REQUEST, ms=(mark - CLIENT_CLOCK, 0)))


@book.case()
def the_replayed_syn_has_the_mss_of_the_cookie(case: Case) -> None:
    """Each entry of the cookie's table becomes an MSS option, the largest bounded by what the
    bridge's packet queue can carry."""
    for port, mss in enumerate(MSS_TABLE, 40000):
        splice = _plain(port, mss=mss)
        options = [("MSS", min(mss, LARGEST_MSS)), NOP, NOP, SACK_OK, NOP, ("WScale", 7)]
        case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn(options))


@book.case()
def the_replayed_syn_has_the_client_s_true_window(case: Case) -> None:
    """A SYN's window is never scaled, so the handoff's is multiplied out, up to 65535."""
    for port, wscale, window, expected in ((40000, 7, 502, 64256), (40001, 0, 29200, 29200),
                                           (40002, 14, 4, 65535), (40003, 7, 512, 65535),
                                           (40004, 8, 0, 0), (40005, None, 65535, 65535)):
        splice = _plain(port, wscale=wscale)
        scale = [] if wscale is None else [NOP, ("WScale", wscale)]
        syn = splice.syn([("MSS", 1460), NOP, NOP, SACK_OK, *scale], window=expected)
        case.sends("replayed", splice.at_bridge("PA", payload=REQUEST, window=window), syn)


@book.case()
def segments_wait_in_order_for_the_server(case: Case) -> None:
    """While the server has not answered, segments of the flow are kept, whatever order they come
    in, once each; a bare ACK is not kept. They follow the handshake in the stream's order, with no
    ACK of their own before them."""
    splice = Splice()
    end = 1 + len(REQUEST)

    case.sends("replayed", splice.at_bridge("A", payload=REQUEST), splice.syn())
    case.holds(splice.at_bridge("PA", end + 4, payload=b"more"),
               splice.at_bridge("A", end, payload=b"some"))
    case.drops("replay_pending", splice.at_bridge("A", end), splice.at_bridge("A", payload=REQUEST))
    case.holds(splice.at_bridge("FA", end + 8))
    case.wait(30)
    case.sends(
        "opened", splice.syn_ack(), splice.at_server("A", payload=REQUEST),
        splice.at_server("A", end, payload=b"some"),
        splice.at_server("PA", end + 4, payload=b"more"), splice.at_server("FA", end + 8),
    )


@book.case()
def a_fin_with_the_first_data_is_replayed(case: Case) -> None:
    """A request with its client's FIN in one segment opens a flow; the server answers, closes, and
    gets the last ACK."""
    splice = Splice()
    end = 2 + len(REQUEST)

    case.sends("replayed", splice.at_bridge("FPA", payload=REQUEST), splice.syn())
    case.sends("opened", splice.syn_ack(), splice.at_server("FPA", payload=REQUEST))
    splice.down(case, "FPA", 1, end, b"HTTP/1.0 200 OK\r\n\r\n", ms=(3, 0))
    splice.up(case, "A", end, 21, ms=(5, 3))


@book.case()
def a_handoff_that_comes_again_is_passed_on(case: Case) -> None:
    """The first segment sent again after the flow is open goes to the server like any other, which
    may have lost it; the server's repeated SYN-ACK is dropped, because the handoff will answer
    it."""
    splice = Splice()

    splice.open(case)
    case.drops("replay_done", splice.syn_ack())
    case.wait(200)
    splice.up(case, "PA", payload=REQUEST)


@book.case()
def the_syn_is_sent_again_until_the_server_answers(case: Case) -> None:
    """A lost SYN, or a server that is full, is asked again after 1, 2 and 4 s, and its late answer
    opens the flow."""
    splice = Splice()

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.timers_send(1000, splice.syn())
    case.timers_send(2000, splice.syn())
    case.timers_send(4000, splice.syn())
    case.wait(50)
    case.sends("opened", splice.syn_ack(), splice.at_server("PA", payload=REQUEST))


@book.case()
def a_server_that_stays_silent_is_given_up(case: Case) -> None:
    """After 15 s without an answer the client gets a reset with the number it expects, the server
    one in case it is only slow, and late packets of either are answered with a reset too."""
    splice = Splice()
    end = 1 + len(REQUEST)

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.timers_send(1000, splice.syn())
    case.timers_send(2000, splice.syn())
    case.timers_send(4000, splice.syn())
    case.timers_send(8000, splice.reset_to_client(ack=end), splice.reset_to_server())
    case.wait(100)
    case.sends("reset", splice.at_bridge("PA", payload=REQUEST), splice.reset_to_client())
    case.sends("reset", splice.syn_ack(), splice.reset_to_server())
    case.drops("flow_closed", splice.at_bridge("R", end))


@book.case(timeouts={"replay": 2})
def a_server_s_patience_is_configuration(case: Case) -> None:
    """With a patience of 2 s the SYN is sent twice, and the client is told at the end of that."""
    splice = Splice()

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.timers_send(1000, splice.syn())
    case.timers_send(1000, splice.reset_to_client(ack=1 + len(REQUEST)), splice.reset_to_server())


@book.case()
def a_server_that_refuses_becomes_a_reset_to_the_client(case: Case) -> None:
    """A refusal is passed on as a reset that the client's stack accepts: its sequence number is
    just what the client expects, and it acknowledges all that was sent. Later packets of the flow
    are reset as well."""
    splice = Splice()
    end = 1 + len(REQUEST)
    refusal = splice.syn_ack([], flags="RA", window=0)

    case.sends("replayed", splice.at_bridge("A", payload=REQUEST), splice.syn())
    case.holds(splice.at_bridge("PA", end, payload=b"body"))
    case.sends("reset", changed(refusal, seq=0), splice.reset_to_client(ack=end + 4))
    case.sends("reset", splice.at_bridge("PA", end + 4, payload=b"x"), splice.reset_to_client())
    case.sends("reset", splice.at_bridge("A", end + 4, 1), splice.reset_to_client())
    case.drops("flow_closed", splice.at_bridge("RA", end + 4), changed(refusal, seq=0))


@book.case()
def an_old_connection_at_the_server_is_ended_first(case: Case) -> None:
    """A server that still has an older connection on these ports, in TIME_WAIT or half open,
    answers a SYN with an ACK of that one: it gets a reset with that number, and the SYN again."""
    splice = Splice()
    challenge = whole(
        src=SERVER, dst=splice.client.address, sport=SERVER_PORT, dport=40000, flags="A",
        seq=0x1111_0000, ack=0x2222_0000, window=500,
        options=timestamps(77, 88),
    )
    reset = whole(src=splice.client.address, dst=SERVER, sport=40000, dport=SERVER_PORT,
                  seq=0x2222_0000, flags="R")

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    for _ in range(3):
        case.sends("reset", challenge, reset, splice.syn())
    case.sends("reset", challenge, reset)
    case.sends("opened", splice.syn_ack(), splice.at_server("PA", payload=REQUEST))


@book.case()
def answers_that_answer_nothing_are_dropped(case: Case) -> None:
    """While a SYN is out, a SYN without ACK, a reset with another number, and an ACK that accepts
    the SYN without one of its own, are none."""
    splice = Splice()
    answer = splice.syn_ack()

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.drops(
        "replay_pending",
        changed(answer, flags="S"), changed(answer, flags="RA", ack=splice.client.isn),
        changed(answer, flags="R"), changed(answer, flags="A"), changed(answer, flags="FA"),
    )
    case.sends("opened", answer, splice.at_server("PA", payload=REQUEST))


@book.case()
def a_client_that_resets_during_the_replay_ends_it(case: Case) -> None:
    """A reset while the server is silent reaches the server as one that ends what the SYN began;
    a SYN-ACK that crosses it is answered with a reset."""
    splice = Splice()
    end = 1 + len(REQUEST)

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.sends("reset", splice.at_bridge("RA", end), splice.reset_to_server())
    case.sends("reset", splice.syn_ack(), splice.reset_to_server())
    case.drops("flow_closed", splice.at_bridge("RA", end))


@book.case()
def a_segment_without_payload_opens_nothing(case: Case) -> None:
    """A bare ACK, a FIN or a reset with a good cookie opens nothing, however well it is tagged."""
    for port, flags in enumerate(("A", "FA", "R", "RA"), 40000):
        splice = Splice(Client(port))
        case.drops("reset_unanswered" if "R" in flags else "unknown_flow", splice.at_bridge(flags))
    case.drops("reset_unanswered", Splice().at_bridge("RA", payload=b"goodbye"))


@book.case(services=[{}, {"dscp": 7, "vip": "192.168.33.11:80"}])
def a_forged_handoff_opens_nothing(case: Case) -> None:
    """A tagged data segment without a good cookie opens nothing: a guess, another secret, a cookie
    for another port, client number, option set or VIP, and none without the ACK flag."""
    splice = _plain()
    good = splice.at_bridge("PA", payload=REQUEST)
    cookie = splice.client.cookie_isn

    case.drops(
        "unknown_flow",
        changed(good, ack=cookie + 0x101 & 0xFFFFFFFF),
        changed(good, sport=40001),
        changed(good, src="192.168.33.2"),
        changed(good, seq=splice.client.isn + 2),
        changed(good, tos=7 << 2),
        _plain(40002, secret=OTHER_SECRET).at_bridge("PA", payload=REQUEST),
        _plain(40003, vip="192.168.33.11").at_bridge("PA", payload=REQUEST),
        changed(_plain(40004).at_bridge("PA", payload=REQUEST), flags="P"),
    )
    case.sends("replayed", good, splice.syn())


@book.case()
def a_handoff_proves_which_bridge_it_is_for(case: Case) -> None:
    """With a good cookie alone, a handoff with timestamps opens nothing: not with a TSecr that
    proves nothing, nor with one bit of it wrong, nor one for another bridge."""
    splice = Splice()
    good = splice.at_bridge("PA", payload=REQUEST)
    proof, other = (splice.client.proof(BRIDGES[number]) for number in (1, 2))
    assert proof != other

    for wrong in (0, other, *(proof ^ 1 << bit for bit in range(10, 24))):
        case.drops("bad_echo", echoing(good, splice.echo + wrong))
    case.drops("bad_echo", echoing(good, splice.client.t0))
    case.sends("replayed", good, splice.syn())


@book.case()
def the_first_segment_sent_again_proves_it_again(case: Case) -> None:
    """What the TSecr of the first segment has beside the clock never reaches the server: not when
    it waits, not when it comes again, longer or shorter; others have nothing of the kind."""
    splice = Splice()
    end = 1 + len(REQUEST)

    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.holds(splice.at_bridge("PA", payload=REQUEST + b"more"))
    case.sends("opened", splice.syn_ack(), splice.at_server("PA", payload=REQUEST),
               splice.at_server("PA", payload=REQUEST + b"more"))
    splice.up(case, "PA", payload=REQUEST)
    splice.up(case, "PA", payload=REQUEST[:10])
    splice.up(case, "PA", end, payload=b"more")
    splice.up(case, "A")


@book.case(accept_version_1=True)
def a_handoff_of_version_1_is_taken_where_the_setting_says_so(case: Case) -> None:
    """While a cluster is being upgraded, a handoff may prove nothing at all, and still none for
    another bridge."""
    for port in (40000, 40001):
        splice = Splice(Client(port))
        handoff = splice.at_bridge("PA", payload=REQUEST)
        case.drops("bad_echo", echoing(handoff, splice.echo + splice.client.proof(BRIDGES[2])))
        if port == 40000:
            handoff = echoing(handoff, splice.echo)
        case.sends("replayed", handoff, splice.syn())
        case.sends("opened", splice.syn_ack(), splice.at_server("PA", payload=REQUEST))


@book.case()
def wrong_cookies_without_timestamps_are_borne_up_to_a_rate(case: Case) -> None:
    """250 handoffs that have nothing to show but a wrong cookie are looked at in a tenth of a
    second; until the next one, none without timestamps opens anything. Those with timestamps, and
    flows that are known, are not concerned."""
    known, late, stranger = _plain(), _plain(40001), _plain(39999)
    stamped = Splice(Client(40002))

    known.open(case)
    for guess in range(250):
        case.drops("unknown_flow", stranger.at_bridge("PA", ack=1 + 0x100 * (1 + guess),
                                                      payload=b"x"))
    handoff = late.at_bridge("PA", payload=REQUEST)
    case.drops("guesses_limited", handoff, stranger.at_bridge("PA", payload=b"x"))
    known.up(case, "PA", 1 + len(REQUEST), payload=b"x")
    stamped.open(case)
    case.wait(100)
    case.sends("replayed", handoff, late.syn())


@book.case(accept_version_1=True)
def where_version_1_is_accepted_every_wrong_cookie_counts(case: Case) -> None:
    """Then timestamps need prove nothing, and handoffs with them are guesses like those without."""
    stranger, late = Splice(Client(39999)), Splice(Client(40000))

    for guess in range(250):
        case.drops("unknown_flow", stranger.at_bridge("PA", ack=1 + 0x100 * (1 + guess),
                                                      payload=b"x"))
    handoff = late.at_bridge("PA", payload=REQUEST)
    case.drops("guesses_limited", handoff)
    case.wait(100)
    case.sends("replayed", handoff, late.syn())


@book.case()
def cookies_of_neighbouring_epochs_open_a_flow(case: Case) -> None:
    """The previous epoch's cookie is good, and the next one's in the last 16 s of an epoch, but
    none from two epochs off."""
    for port, epochs, good in ((40000, -1, True), (40001, 1, False), (40002, -2, False),
                               (40003, 2, False), (40004, 1, True), (40005, 2, False)):
        if port == 40004:
            case.wait(EPOCH_MS - START_MS % EPOCH_MS - 16_000)
        splice = _plain(port, syn_at_ms=START_MS + epochs * EPOCH_MS)
        if good:
            splice.open(case)
        else:
            case.drops("unknown_flow", splice.at_bridge("PA", payload=REQUEST))


@book.case(secrets=(OTHER_SECRET, SECRET))
def cookies_under_both_secrets_open_a_flow(case: Case) -> None:
    """While keys rotate, the previous secret is good as well as the current one."""
    for port, secret in ((40000, SECRET), (40001, OTHER_SECRET)):
        splice = _plain(port, secret=secret)
        case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.drops("unknown_flow",
               _plain(40002, secret=bytes(16)).at_bridge("PA", payload=REQUEST))


@book.case()
def a_handoff_damaged_under_way_opens_nothing(case: Case) -> None:
    """A handoff whose checksum is wrong is not replayed, since the SYN made of it would carry the
    damage under a right checksum."""
    splice = Splice()
    good = splice.at_bridge("PA", payload=REQUEST)
    damaged = bytearray(bytes(good))
    damaged[-3] ^= 0x20

    case.drops("bad_checksum", bytes(damaged))
    case.sends("replayed", good, splice.syn())


@book.case(services=[{}, {"dscp": 11, "vip": f"{VIP}:443", "server": f"{SERVER}:8443"}])
def what_is_not_tagged_is_left_to_the_host(case: Case) -> None:
    """Without a configured DSCP, or to another port or address, a packet is the host's own, even
    with a good cookie; so is a SYN with the tag, which no balancer sends."""
    splice = _plain()
    handoff = splice.at_bridge("PA", payload=REQUEST)

    case.passes(
        changed(handoff, tos=0), changed(handoff, tos=1 << 2), changed(handoff, tos=11 << 2),
        changed(handoff, dport=81), changed(handoff, dport=443), changed(handoff, dst=SERVER),
        changed(handoff, dst=VIP), changed(splice.syn(), dst=BRIDGE, dport=80, tos=3 << 2),
        changed(handoff, dst=SERVER, dport=SERVER_PORT, tos=0),
    )
    case.sends("replayed", handoff, splice.syn())
    tls = Splice(Client(timestamps=False, vip_port=443), server_port=8443, dscp=11)
    case.sends("replayed", tls.at_bridge("PA", payload=b"\x16\x03"), tls.syn())


@book.case()
def a_new_handoff_takes_the_place_of_an_old_flow(case: Case) -> None:
    """A client that comes back on the same ports, with a new number and a new cookie, opens a new
    flow over the old one, whether that was closed or not."""
    old, new = Splice(), Splice(Client(isn=0x7000_0000), server_isn=0x4000_0000)
    end = 1 + len(REQUEST)

    old.open(case)
    old.down(case, "FA", 1, end, ms=(5, 0))
    old.up(case, "FA", end, 2, ms=(6, 5))
    case.wait(3000)
    new.open(case)
    new.up(case, "A", end, 500, ms=(9, 9))
    newer = Splice(Client(isn=0x0100_0000), server_isn=0x5000_0000)
    newer.open(case)
    newer.down(case, "A", 1, end, b"x" * 100, ms=(5, 0))


