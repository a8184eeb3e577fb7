"""The balancer's answer to a SYN: the cookie, and options as offered."""

from scapy.layers.inet import IP, UDP

from tests.golden.case import START_MS, Book, Case
from tests.golden.stacks import (
    MSS_TABLE,
    NOP,
    SACK_OK,
    VIP,
    Client,
    Options,
    balancer_config,
    changed,
    with_raw_options,
)

book = Book("balancer", balancer_config)
END = ("EOL", None)
LINUX = [("MSS", 1460), SACK_OK, ("Timestamp", (9000, 0)), NOP, ("WScale", 7)]


def _answer(client: Client, now_ms: int = START_MS) -> Options:
    """All of these, as the service has them."""
    return [("MSS", 1460), SACK_OK, ("Timestamp", (client.t0_at(now_ms), 9000)), NOP,
            ("WScale", 7)]


@book.case()
def a_syn_as_linux_sends_it_is_answered_with_all_it_offers(case: Case) -> None:
    """A SYN as Linux sends it is answered with MSS, SACK, timestamps and window scale, and the
    cookie says what was offered."""
    client = Client()

    case.sends("syn_answered", client.syn(LINUX), client.syn_ack(_answer(client)))


@book.case()
def a_syn_as_macos_sends_it_is_answered(case: Case) -> None:
    """A SYN in the option layout of macOS and iOS, with END at its end, is read as well as any."""
    client = Client(wscale=6)
    offered = [("MSS", 1460), NOP, ("WScale", 6), NOP, NOP, ("Timestamp", (9000, 0)), SACK_OK, END]

    case.sends("syn_answered", client.syn(offered), client.syn_ack(_answer(client)))


@book.case()
def a_syn_as_windows_sends_it_is_answered_without_timestamps(case: Case) -> None:
    """A SYN in the option layout of Windows offers no timestamps, and gets none."""
    client = Client(wscale=8, timestamps=False)
    offered = [("MSS", 1460), NOP, ("WScale", 8), NOP, NOP, SACK_OK]
    answer = [("MSS", 1460), NOP, NOP, SACK_OK, NOP, ("WScale", 7)]

    case.sends("syn_answered", client.syn(offered), client.syn_ack(answer))


@book.case()
def a_syn_without_options_gets_an_mss_alone(case: Case) -> None:
    """A SYN without options means an MSS of 536 (RFC 9293 §3.7.1); the answer states our own MSS,
    which is no negotiation, and nothing else."""
    client = Client(mss=None, sack=False, wscale=None, timestamps=False)

    case.sends("syn_answered", client.syn([]), client.syn_ack([("MSS", 1460)]))


@book.case()
def each_option_that_is_not_offered_is_not_answered(case: Case) -> None:
    """MSS alone, no timestamps, no SACK, no window scale, nothing but timestamps: each SYN gets
    back what it offered, and the cookie says what is missing."""
    mss, sack, ts, wscale = LINUX[0], SACK_OK, LINUX[2], LINUX[4]
    stated, echo = ("MSS", 1460), ("Timestamp", (0, 9000))
    for client, offered, answer in [
        (Client(40001, sack=False, wscale=None), [mss], [stated]),
        (Client(40002), [mss, NOP, NOP, sack, NOP, wscale],
         [stated, NOP, NOP, sack, NOP, wscale]),
        (Client(40003, sack=False), [mss, NOP, NOP, ts, NOP, wscale],
         [stated, NOP, NOP, echo, NOP, wscale]),
        (Client(40004, wscale=None), [mss, sack, ts], [stated, sack, echo]),
        (Client(40005, mss=None, sack=False, wscale=None), [NOP, NOP, ts],
         [stated, NOP, NOP, echo]),
        (Client(40006, mss=None, wscale=None), [NOP, NOP, sack], [stated, NOP, NOP, sack]),
    ]:
        told = [("Timestamp", (client.t0, 9000)) if each is echo else each for each in answer]
        case.sends("syn_answered", client.syn(offered), client.syn_ack(told))


@book.case()
def the_cookie_rounds_an_mss_down_to_its_table(case: Case) -> None:
    """Every MSS takes the largest entry of the cookie's table that does not exceed it; a tiny one
    takes the first, a jumbo one the last."""
    offers = [0, 1, 88, 535, 536, 1199, 1200, *(mss + step for mss in MSS_TABLE[2:] for step in
                                                (-1, 0)), 9000, 65535]
    answer = [("MSS", 1460), NOP, NOP, SACK_OK, NOP, ("WScale", 7)]
    for port, mss in enumerate(offers, 40000):
        client = Client(port, mss=mss, timestamps=False)
        offered = [("MSS", mss), NOP, NOP, SACK_OK, NOP, ("WScale", 7)]
        case.sends("syn_answered", client.syn(offered), client.syn_ack(answer))


@book.case()
def a_window_scale_beyond_14_counts_as_14(case: Case) -> None:
    """The cookie holds any shift; one above 14 means 14 (RFC 7323 §2.3), and 15 is free for "none
    offered"."""
    answer = [("MSS", 1460), NOP, ("WScale", 7)]
    for port, wscale in enumerate([0, 1, 13, 14, 15, 16, 255], 40000):
        client = Client(port, sack=False, wscale=min(wscale, 14), timestamps=False)
        offered = [("MSS", 1460), NOP, ("WScale", wscale)]
        case.sends("syn_answered", client.syn(offered), client.syn_ack(answer))


@book.case(services=[{"sack": False, "timestamps": False, "wscale": 0, "mss": 536}])
def options_that_the_service_lacks_are_not_answered(case: Case) -> None:
    """Where a service has no SACK and no timestamps, a SYN that offers them does not get them, and
    the cookie does not say that it did; MSS and window scale are the service's."""
    client = Client(sack=False, timestamps=False)
    answer = [("MSS", 536), NOP, ("WScale", 0)]

    case.sends("syn_answered", client.syn(LINUX), client.syn_ack(answer))


@book.case()
def options_are_found_whatever_the_padding(case: Case) -> None:
    """NOPs and unknown options anywhere do not hide the known ones: three NOPs at the start, TCP
    Fast Open, MPTCP, experimental ones, and none aligned."""
    mss, sack, ts, wscale = b"\x02\4\5\xb4", b"\4\2", b"\x08\x0a\0\0\x23\x28\0\0\0\0", b"\3\3\7"
    cases = [
        b"\1\1\1" + mss + sack + ts + wscale,
        wscale + ts + b"\1" + sack + mss,
        mss + b"\x22\x0a12345678" + sack + ts + wscale,
        mss + b"\x1e\x0c\0\x8101234567" + sack + ts + wscale,
        mss + b"\xfd\4\xf9\x89" + b"\xfe\2" + sack + b"\1\1" + ts + b"\1" + wscale,
        mss + sack + ts + wscale + b"\0" + b"\x02\4\0\x58",
    ]
    for port, octets in enumerate(cases, 40000):
        client = Client(port)
        syn = with_raw_options(client.syn(), octets)
        case.sends("syn_answered", syn, client.syn_ack(_answer(client)))


@book.case()
def a_broken_option_ends_the_list_but_not_the_syn(case: Case) -> None:
    """An option of length 0 or 1, or longer than the header, ends the list: what came before it
    counts, and what follows does not, as with Linux."""
    mss, sack = b"\x02\4\5\xb4", b"\4\2"
    answer = [("MSS", 1460), NOP, NOP, SACK_OK]
    for port, broken in enumerate([b"\3\0\7\1\1", b"\3\1\7\1\1", b"\3\x20\7", b"\x63\xff\3\3\7"],
                                  40000):
        client = Client(port, wscale=None, timestamps=False)
        syn = with_raw_options(client.syn(), mss + sack + b"\1\1" + broken)
        case.sends("syn_answered", syn, client.syn_ack(answer))


@book.case()
def an_option_of_the_wrong_length_is_passed_over(case: Case) -> None:
    """A known option whose length is not its own is skipped like an unknown one, and where one
    stands twice the last counts."""
    client = Client(mss=1400, sack=False, wscale=None, timestamps=False)
    options = b"\x02\6\5\xb4\0\0" + b"\3\4\7\7" + b"\4\3\0" + b"\x08\x06\0\0\0\1"

    syn = with_raw_options(client.syn(), options + b"\x02\4\2\x18" + b"\x02\4\5\x78")

    case.sends("syn_answered", syn, client.syn_ack([("MSS", 1460)]))


@book.case()
def data_in_a_syn_is_not_acknowledged(case: Case) -> None:
    """A SYN with data (TCP Fast Open) is answered as if it had none, so that the client sends it
    again (RFC 7413 §3)."""
    client = Client()

    case.sends("syn_answered", client.syn(LINUX, payload=b"GET / HTTP/1.1\r\n\r\n"),
               client.syn_ack(_answer(client)))


@book.case()
def a_syn_that_asks_for_ecn_is_answered_without(case: Case) -> None:
    """ECN is not agreed to, since a cookie has no room to remember it; the SYN's own TOS is not
    repeated."""
    client = Client()

    syn = changed(client.syn(LINUX, tos=0xB8), flags="SEC")

    case.sends("syn_answered", syn, client.syn_ack(_answer(client)))


@book.case()
def a_repeated_syn_gets_the_same_cookie_within_an_epoch(case: Case) -> None:
    """A SYN that is sent again in the same 64 s gets the same number, and a new clock; in the next
    epoch it gets another number."""
    first = Client()
    for after_ms in (0, 1000, 2000):
        case.wait(after_ms)
        case.sends("syn_answered", first.syn(LINUX),
                   first.syn_ack(_answer(first, case.now_ms)))
    case.wait(60_000)

    later = Client(syn_at_ms=case.now_ms)
    case.sends("syn_answered", later.syn(LINUX), later.syn_ack(_answer(later, case.now_ms)))
    assert first.cookie_isn != later.cookie_isn


@book.case()
def the_clock_of_the_syn_ack_is_never_zero(case: Case) -> None:
    """T0 is 14 bits for the handshake and a millisecond clock of 10; where all of them are 0 it is
    1: a client that has seen 0 could not tell its echo from none."""
    case.wait(-START_MS % 1024 - 1)
    isn = next(isn for isn in range(1 << 20)
               if not Client(isn=isn, syn_at_ms=case.now_ms).hash >> 24 & 0x3FFF)
    for port, client_isn, t0 in ((40000, isn, 1023), (40000, isn, 1), (40000, isn, 1),
                                 (40000, isn, 2), (40001, 1, None)):
        client = Client(port, isn=client_isn, syn_at_ms=case.now_ms)
        assert t0 in (None, client.t0)
        case.sends("syn_answered", client.syn(LINUX), client.syn_ack(_answer(client, case.now_ms)))
        case.wait(1)


@book.case()
def the_clients_number_wraps(case: Case) -> None:
    """A client whose initial number is 2^32 - 1 is acknowledged with 0."""
    client = Client(isn=0xFFFF_FFFF)

    case.sends("syn_answered", client.syn(LINUX), client.syn_ack(_answer(client)))


@book.case(secrets=(bytes(range(16, 32)), bytes(range(16))))
def new_cookies_are_made_with_the_current_secret(case: Case) -> None:
    """While keys rotate, a SYN is answered with the current key, never with the previous one."""
    client = Client(secret=bytes(range(16, 32)))

    case.sends("syn_answered", client.syn(LINUX), client.syn_ack(_answer(client)))


@book.case()
def a_syn_with_other_flags_beside_it_is_dropped(case: Case) -> None:
    """SYN together with ACK, FIN or RST is no request for a connection, whatever else is set."""
    client = Client()

    for flags in ("SA", "SF", "SR", "SFA", "SRA", "SFPU", "FSRPAUEC"):
        case.drops("bad_flags", changed(client.syn(LINUX), flags=flags))


@book.case()
def a_syn_from_an_impossible_source_is_dropped(case: Case) -> None:
    """Sources that no host can have, and the VIP itself, get no answer (RFC 1122 §3.2.1.3)."""
    for source in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "224.0.0.1", "239.1.2.3",
                   "240.0.0.1", "255.255.255.255", VIP):
        case.drops("bad_source", Client(address=source).syn(LINUX))


@book.case(services=[{}, {"port": 8080, "dscp": 7}])
def what_is_for_no_service_is_left_to_the_host(case: Case) -> None:
    """Other ports of the VIP, other addresses of the host and other protocols are none of ours."""
    other = Client(vip_port=8080)

    case.passes(
        Client(vip_port=81).syn(LINUX),
        Client(vip_port=22).segment("PA", payload=b"x"),
        Client(vip="192.168.33.11").syn(LINUX),
        bytes(IP(src="192.168.33.1", dst=VIP, id=1) / UDP(sport=80, dport=80) / b"x"),
    )
    case.sends("syn_answered", other.syn(LINUX), other.syn_ack(_answer(other)))
