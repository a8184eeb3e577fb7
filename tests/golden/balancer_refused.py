"""What the balancer does not carry, and what is not what it claims to be; and ICMP errors."""

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from tests.golden.case import Book, Case
from tests.golden.stacks import (
    BRIDGES,
    CLIENT_CLOCK,
    DSCP,
    REQUEST,
    VIP,
    Client,
    balancer_config,
    changed,
    icmp_error,
    named,
    timestamps,
    to_bridge,
)

book = Book("balancer", balancer_config)
LINUX = [("MSS", 1460)]
OWN_ADDRESS = "192.168.33.11"


def _open(case: Case, client: Client) -> None:
    request = client.segment("PA", payload=REQUEST)
    tsecr = client.handed(1, 1) if client.timestamps else None
    case.sends("handoff", request, to_bridge(request, tsecr=tsecr))


def _at_bridge(error: Packet) -> Packet:
    """An ICMP error as it leaves for the bridge."""
    return changed(error, dst=BRIDGES[1], tos=DSCP << 2 | error[IP].tos & 3,
                   ttl=error[IP].ttl - 1)


# --- the IP header ---


@book.case()
def fragments_are_dropped(case: Case) -> None:
    """The first fragment, a middle one and the last are dropped; a packet that merely must not be
    fragmented, or has the reserved bit, is none."""
    client = Client(timestamps=False)
    packet = client.segment("A", 500, 9000, payload=bytes(32))

    _open(case, client)
    for flags, offset in (("MF", 0), ("MF", 3), (0, 3), ("MF+DF", 0), (0, 8191)):
        fragment = packet.copy()
        fragment[IP].flags, fragment[IP].frag = flags, offset
        case.drops("fragment", fragment)
    for flags in ("DF", 0, "evil", "evil+DF"):
        sound = packet.copy()
        sound[IP].flags = flags
        case.sends("forwarded", sound, to_bridge(sound))


@book.case()
def ip_options_are_dropped(case: Case) -> None:
    """Packets with IP options, a source route among them, go nowhere."""
    client = Client(timestamps=False)
    for octets in (b"\x01\x01\x01\x00", b"\x94\x04\x00\x00", b"\x83\x07\x04\x0a\x00\x00\x01\x00",
                   bytes(40)):
        packet = client.segment("PA", payload=REQUEST)
        payload = bytes(packet[TCP])
        case.drops("ip_options", IP(
            src=client.address, dst=VIP, ihl=5 + len(octets) // 4, proto=6, flags="DF",
            len=20 + len(octets) + len(payload),
        ) / Raw(octets + payload))


@book.case()
def a_packet_whose_time_is_up_goes_no_further(case: Case) -> None:
    """A TTL of 1 or 0 is not forwarded, neither the handoff, which opens nothing, nor what follows;
    2 is."""
    client = Client(timestamps=False)
    request = client.segment("PA", payload=REQUEST)

    case.drops("ttl_expired", changed(request, ttl=1), changed(request, ttl=0))
    case.drops("unknown_flow", client.segment("A", 500, 9000))
    case.sends("handoff", changed(request, ttl=2), to_bridge(changed(request, ttl=2)))
    case.drops("ttl_expired", client.segment("A", 500, 9000, ttl=1))
    case.drops("ttl_expired", Client(40001).segment("A", 500, 9000, ttl=1,
                                                    ts=(CLIENT_CLOCK, named(1, 7))))
    case.sends("syn_answered", Client(40002, sack=False, wscale=None).syn(LINUX, ttl=1),
               Client(40002, sack=False, wscale=None).syn_ack(LINUX))


@book.case()
def an_ip_header_that_lies_is_dropped(case: Case) -> None:
    """Another version, a header shorter than 20 octets, a total length that is shorter than the
    headers or longer than the packet."""
    client = Client()
    packet = bytes(client.segment("PA", payload=REQUEST))

    for first in (0x05, 0x15, 0x55, 0x65, 0xF5, 0x40, 0x44):
        case.drops("malformed_ip", bytes([first]) + packet[1:])
    for total_len in (0, 19, len(packet) + 1, 0xFFFF):
        case.drops("malformed_ip", packet[:2] + total_len.to_bytes(2, "big") + packet[4:])
    case.drops("malformed_tcp", packet[:2] + b"\0\x14" + packet[4:])


@book.case()
def padding_of_the_link_is_cut_off(case: Case) -> None:
    """What lies beyond the packet's own length is no payload: an ACK that Ethernet has padded opens
    nothing, and a padded request leaves without it."""
    client = Client(timestamps=False)
    request = client.segment("PA", payload=REQUEST)

    case.drops("handshake_ack", bytes(client.segment("A")) + bytes(6))
    case.sends("handoff", bytes(request) + b"padding", to_bridge(request))
    for error in (icmp_error(bytes(client.reply("A"))[:28], mtu=1400),):
        case.sends("icmp_forwarded", bytes(error) + bytes(4), _at_bridge(error))


@book.case()
def a_packet_cut_short_anywhere_is_dropped(case: Case) -> None:
    """Truncated after any octet, with the length that it had or with that which is left."""
    client = Client()
    packet = bytes(client.segment("PA", payload=b"GET"))

    _open(case, client)
    for length in range(20, len(packet)):
        case.drops("malformed_ip", packet[:length])
    for length in range(20, 52):
        case.drops("malformed_tcp",
                   packet[:2] + length.to_bytes(2, "big") + packet[4:length])


# --- the TCP header ---


@book.case()
def a_tcp_header_that_lies_is_dropped(case: Case) -> None:
    """A data offset inside the header, or beyond the end of the packet."""
    client = Client(timestamps=False)
    packet = client.segment("PA", payload=b"12345678")

    for offset in (0, 1, 4, 8, 15):
        case.drops("malformed_tcp", changed(packet, dataofs=offset))
    case.drops("malformed_tcp", changed(client.syn(), dataofs=6))
    case.drops("handshake_ack", changed(packet, dataofs=7))


@book.case()
def a_broken_timestamps_option_is_none(case: Case) -> None:
    """Timestamps that do not fit into the header, or of another length, are not read; the flow then
    goes by the table alone."""
    client = Client(timestamps=False)
    stamp = timestamps(CLIENT_CLOCK, named(1, 7))
    good = client.segment("A", 500, 9000, options=stamp)
    for octets in (b"\x01\x01\x08\x0a" + bytes(4), b"\x01\x01\x08\x09" + bytes(8),
                   b"\x08\x00" + bytes(10), b"\x00\x01\x08\x0a" + bytes(8)):
        packet = client.segment("A", 500, 9000)
        packet[TCP].dataofs = 5 + len(octets) // 4
        case.drops("unknown_flow", packet / Raw(octets))
    case.sends("takeover", good, to_bridge(good))


@book.case()
def odd_flags_without_a_flow_are_unknown(case: Case) -> None:
    """No flags at all, or all but SYN, RST and ACK, open nothing; within a flow they are the
    server's to judge."""
    client = Client(timestamps=False)
    odd = [client.segment(flags, 500, 0) for flags in ("", "FPU", "U", "F", "EC")]

    case.drops("unknown_flow", *odd)
    _open(case, client)
    for packet in odd:
        case.sends("forwarded", packet, to_bridge(packet))


# --- ICMP ---


@book.case()
def fragmentation_needed_reaches_the_backend(case: Case) -> None:
    """An ICMP "fragmentation needed" about a reply reaches the backend of the quoted flow, with its
    DSCP and its quotation untouched; a quotation of 8 octets of TCP is enough."""
    client = Client()
    reply = bytes(client.reply("A", 5000, 50, payload=b"x" * 1000))

    _open(case, client)
    for quoted in (reply[:28], reply[:48], reply[:548]):
        error = icmp_error(quoted, mtu=1400, tos=2)
        case.sends("icmp_forwarded", error, _at_bridge(error))


@book.case(backends=(1, 2))
def other_errors_reach_the_backend_too(case: Case) -> None:
    """Host and port unreachable, time exceeded and parameter problem are errors for the server as
    well, whether a router or the client itself sends them."""
    client = Client()
    request = client.segment("PA", 500, 900, payload=REQUEST, ts=(CLIENT_CLOCK, named(1, 5)))
    quoted = bytes(client.reply("A", 5000, 50, options=timestamps(named(1, 7), 5)))

    case.sends("takeover", request, to_bridge(request))
    for kind, code, src in ((3, 1, "10.99.0.1"), (3, 3, client.address), (3, 13, "10.99.0.1"),
                            (11, 0, "10.99.0.1"), (12, 0, "10.99.0.1")):
        error = icmp_error(quoted, kind=kind, code=code, src=src)
        case.sends("icmp_forwarded", error, _at_bridge(error))


@book.case(backends=(1, 2))
def an_error_finds_its_backend_by_the_quoted_timestamp(case: Case) -> None:
    """Where the table does not know the quoted flow, the TSval in the quotation names the backend;
    a quotation too short for it, or one that names nobody, is dropped."""
    client = Client()
    for backend_id in (1, 2):
        quoted = bytes(client.reply("A", 5000, 50, options=timestamps(named(backend_id, 7), 5)))
        error = icmp_error(quoted, mtu=1400)
        expected = changed(_at_bridge(error), dst=BRIDGES[backend_id])
        case.sends("icmp_forwarded", error, expected)
        case.drops("unknown_flow", icmp_error(quoted[:28], mtu=1400))
        case.drops("unknown_flow", icmp_error(quoted[:48], mtu=1400))
    quoted = bytes(client.reply("A", 5000, 50, options=timestamps(named(9, 7), 5)))
    case.drops("unknown_flow", icmp_error(quoted, mtu=1400))


@book.case(own_address=OWN_ADDRESS, backends=(1, 2))
def an_error_goes_on_with_the_balancer_s_own_address_as_source(case: Case) -> None:
    """Whoever has sent an error, it leaves with the balancer's own address on the way to the
    backend: the sender may be a router on that way, which drops what has its own address. A source
    that no host can have makes no difference, and ECN bits stay."""
    client = Client()
    for backend_id in (1, 2):
        quoted = bytes(client.reply("A", 5000, 50, options=timestamps(named(backend_id, 7), 5)))
        for src, tos in (("10.99.0.1", 0), (client.address, 1), ("0.0.0.0", 2), (VIP, 3)):
            error = icmp_error(quoted, mtu=1400, src=src, tos=tos)
            expected = changed(_at_bridge(error), src=OWN_ADDRESS, dst=BRIDGES[backend_id])
            case.sends("icmp_forwarded", error, expected)


@book.case()
def an_error_about_an_unknown_flow_is_dropped(case: Case) -> None:
    """An error that quotes a flow that nobody knows goes nowhere."""
    known, unknown = Client(timestamps=False), Client(40001, timestamps=False)

    _open(case, known)
    case.drops("unknown_flow", icmp_error(bytes(unknown.reply("A", payload=b"x")), mtu=1400))


@book.case()
def an_error_whose_time_is_up_goes_no_further(case: Case) -> None:
    """An ICMP error with a TTL of 1 is not forwarded; with 2 it is."""
    client = Client(timestamps=False)
    quoted = bytes(client.reply("A", payload=b"x"))
    error = icmp_error(quoted, ttl=2, mtu=1400)

    _open(case, client)
    case.drops("ttl_expired", icmp_error(quoted, ttl=1, mtu=1400))
    case.sends("icmp_forwarded", error, _at_bridge(error))


@book.case()
def icmp_for_the_host_is_left_to_it(case: Case) -> None:
    """Echo requests, errors about other ports, about other protocols and about packets that the VIP
    did not send are the host's own."""
    client = Client(timestamps=False)
    reply = client.reply("A", payload=b"x")
    datagram = IP(src=VIP, dst="10.0.0.53", id=1) / UDP(sport=5353, dport=53) / b"query"

    _open(case, client)
    case.passes(
        IP(src=client.address, dst=VIP, id=1) / ICMP(type=8) / b"ping",
        IP(src=client.address, dst=VIP, id=1) / ICMP(type=13, ts_ori=1, ts_rx=0, ts_tx=0),
        IP(src=client.address, dst=VIP, id=1) / ICMP(type=5) / bytes(reply)[:28],
        icmp_error(bytes(changed(reply, sport=22))),
        icmp_error(bytes(changed(reply, src="192.168.33.11"))),
        icmp_error(bytes(datagram), kind=3, code=3),
    )


@book.case()
def an_error_that_is_cut_short_is_dropped(case: Case) -> None:
    """An ICMP error without a whole quotation of IP header and 8 octets, or with a quotation that
    is no sound header of IPv4, cannot be acted on."""
    client = Client(timestamps=False)
    quoted = bytes(client.reply("A", payload=b"x"))

    _open(case, client)
    for length in (0, 7, 20, 27):
        case.drops("malformed_icmp", icmp_error(quoted[:length]))
    for first in (0x46, 0x44, 0x65):
        case.drops("malformed_icmp", icmp_error(bytes([first]) + quoted[1:]))
    whole_error = bytes(icmp_error(quoted))
    for length in (20, 21, 27, 55):
        case.drops("malformed_ip", whole_error[:length])
    fragment = icmp_error(quoted)
    fragment[IP].flags = "MF"
    case.drops("fragment", fragment)
    case.drops("ip_options", b"\x46" + whole_error[1:20] + b"\x01\x01\x01\0" + whole_error[24:])


# --- a path narrower than its ends ---


def _from_path(client: Client, packet: Packet, length: int, *, mtu: int = 1400,
               **fields: int) -> tuple[Packet, Packet]:
    """What a router says to the client of a packet that it was to forward to bridge 1, and how the
    client hears of it. length: octets that are quoted."""
    sent_on = to_bridge(packet)
    about_vip = changed(sent_on, dst=VIP, tos=packet[IP].tos & 3)
    quoted, told = bytes(sent_on)[:length], bytes(about_vip)[:length]
    error = icmp_error(quoted, dst=client.address, mtu=mtu, **fields)
    retold = icmp_error(told, src=VIP, dst=client.address, mtu=mtu, ttl=64)
    retold[IP].id, retold[IP].flags = 0, "DF"
    return error, retold


@book.case()
def an_error_about_a_forwarded_packet_reaches_the_client_as_one_about_the_vip(case: Case) -> None:
    """A router between balancer and bridge quotes the bridge, which the client has never heard of:
    the quotation becomes one about the VIP, checksums included, from the VIP. 8 octets of TCP are
    enough, and a router that does not know how wide its link is is passed on, too."""
    client = Client(timestamps=False)
    long = client.segment("A", 1 + len(REQUEST), payload=b"x" * 1400)

    _open(case, client)
    case.sends("forwarded", long, to_bridge(long))
    for length in (28, 37, 38, 40, 548):
        error, retold = _from_path(client, long, length)
        case.sends("icmp_forwarded", error, retold)
    error, retold = _from_path(client, long, 548, mtu=0)
    case.sends("icmp_forwarded", error, retold)


def _is_offered(case: Case, mss: int) -> None:
    """A client that comes now is offered this MSS."""
    client = Client(41000, sack=False, wscale=None, timestamps=False, syn_at_ms=case.now_ms)
    case.sends("syn_answered", client.syn([("MSS", 1460)]), client.syn_ack([("MSS", mss)]))


@book.case()
def a_path_that_turns_out_narrow_bounds_the_mss_for_ten_minutes(case: Case) -> None:
    """The MSS of a service fits the smallest path to any backend, as soon as a router has told of
    it, and a larger one that is told of later does not count. Each time it is told again, there are
    ten minutes more; then the service's own MSS is back."""
    client = Client(timestamps=False)
    long = client.segment("A", 1 + len(REQUEST), payload=b"x" * 1400)

    _open(case, client)
    _is_offered(case, 1460)
    for mtu, mss in ((1400, 1360), (1300, 1260), (1350, 1260)):
        error, retold = _from_path(client, long, 548, mtu=mtu)
        case.sends("icmp_forwarded", error, retold)
        case.wait(500)
        _is_offered(case, mss)
    case.wait(300_000)
    error, retold = _from_path(client, long, 548, mtu=1300)
    case.sends("icmp_forwarded", error, retold)
    case.wait(599_900)
    _is_offered(case, 1260)
    case.wait(200)
    _is_offered(case, 1460)


@book.case()
def an_error_about_no_packet_that_can_have_been_forwarded_teaches_nothing(case: Case) -> None:
    """Whoever makes an error up has to know the flow, and a packet that can have been sent: in its
    window, longer than the link that it names, which is no narrower than every host must take.
    All else is left to the host, and the MSS stays."""
    client, stranger = (Client(port, timestamps=False) for port in (40000, 40001))
    long = client.segment("A", 1 + len(REQUEST), payload=b"x" * 1400)

    _open(case, client)
    case.passes(
        _from_path(stranger, stranger.segment("A", payload=b"x" * 1400), 548)[0],
        _from_path(client, client.segment("A", -5000, payload=b"x" * 1400), 548)[0],
        _from_path(client, client.segment("A", 1 << 30, payload=b"x" * 1400), 548)[0],
        _from_path(client, long, 548, mtu=1440)[0],
        _from_path(client, client.segment("A", payload=b"x" * 300), 548, mtu=68)[0],
        changed(_from_path(client, long, 548)[0], dst="10.0.0.9"),
        _from_path(client, long, 548, kind=3, code=1)[0],
        _from_path(client, long, 27)[0],
        _from_path(client, changed(long, dport=81), 548)[0],
        icmp_error(bytes(changed(to_bridge(long), dst=BRIDGES[2])), dst=client.address, mtu=1400),
    )
    case.wait(500)
    _is_offered(case, 1460)
