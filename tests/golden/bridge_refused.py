"""What the bridge does not carry, and what is not what it claims to be; and ICMP errors."""

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from tests.golden.case import Book, Case
from tests.golden.splice import BRIDGE, SERVER, Splice, bridge_config
from tests.golden.stacks import DSCP, REQUEST, Client, changed, icmp_error, whole

book = Book("packetbridge", bridge_config)
END = 1 + len(REQUEST)
TAG = DSCP << 2


# --- the IP and TCP headers ---


@book.case()
def tagged_fragments_are_dropped(case: Case) -> None:
    """A fragment with the tag, the first or a later one that has no ports, goes neither to the
    server nor to the host."""
    splice = Splice()

    splice.open(case)
    first = splice.at_bridge("A", END, 1, bytes(32))
    first[IP].flags = "MF"
    case.drops("fragment", first)
    for flags, offset in (("MF", 3), (0, 3), (0, 185), ("DF", 8191)):
        header = IP(src=splice.client.address, dst=BRIDGE, tos=TAG, ttl=63, proto=6, flags=flags,
                    frag=offset)
        case.drops("fragment", header / Raw(b"what would be ports"), header / Raw(b"1"))


@book.case()
def tagged_packets_with_ip_options_are_dropped(case: Case) -> None:
    """IP options move the ports; a tagged packet that has them goes nowhere."""
    splice = Splice()
    for octets in (b"\x01\x01\x01\x00", b"\x94\x04\x00\x00",
                   b"\x83\x07\x04\x0a\x00\x00\x01\x00"):
        packet = splice.at_bridge("PA", payload=REQUEST)
        payload = bytes(packet[TCP])
        case.drops("ip_options", IP(
            src=splice.client.address, dst=BRIDGE, tos=TAG, ihl=5 + len(octets) // 4, proto=6,
            flags="DF", len=20 + len(octets) + len(payload),
        ) / Raw(octets + payload))


@book.case()
def a_tagged_packet_whose_time_is_up_goes_no_further(case: Case) -> None:
    """A TTL of 1 or 0 opens nothing and is not forwarded; 2 is. The server's own packets are just
    being made, and keep theirs, even 1."""
    splice = Splice()
    handoff = splice.at_bridge("PA", payload=REQUEST)

    case.drops("ttl_expired", changed(handoff, ttl=1), changed(handoff, ttl=0))
    case.sends("replayed", changed(handoff, ttl=2), splice.syn())
    case.sends("opened", splice.syn_ack(), splice.at_server("PA", payload=REQUEST, ttl=2))
    case.drops("ttl_expired", splice.at_bridge("A", END, 1, ttl=1))
    splice.down(case, "A", 1, END, b"data", ttl=1)


@book.case()
def headers_that_lie_are_dropped_on_either_side(case: Case) -> None:
    """Another IP version, headers too short, a total length or a data offset beyond the packet or
    inside its headers; from the balancer and from the server."""
    splice = Splice()

    splice.open(case)
    for packet in (splice.at_bridge("PA", END, 1, b"12345678"),
                   splice.from_server("PA", 1, END, b"12345678")):
        octets = bytes(packet)
        for first in (0x05, 0x55, 0x65, 0x40, 0x44):
            case.drops("malformed_ip", bytes([first]) + octets[1:])
        for total_len in (0, 19, len(octets) + 1, 0xFFFF):
            case.drops("malformed_ip", octets[:2] + total_len.to_bytes(2, "big") + octets[4:])
        for total_len in (20, 30, 39, 51):
            case.drops("malformed_tcp", octets[:2] + total_len.to_bytes(2, "big") + octets[4:])
        for offset in (0, 1, 4, 11, 15):
            case.drops("malformed_tcp", changed(packet, dataofs=offset))


@book.case()
def packets_cut_short_anywhere_are_dropped(case: Case) -> None:
    """Truncated after any octet from the ports on, with the length that they had or with that which
    is left."""
    splice = Splice()

    splice.open(case)
    for packet in (splice.at_bridge("PA", END, 1, b"xyz"), splice.from_server("A", 1, END, b"xyz")):
        octets = bytes(packet)
        for length in range(24, len(octets)):
            case.drops("malformed_ip", octets[:length])
        for length in range(24, 52):
            case.drops("malformed_tcp",
                       octets[:2] + length.to_bytes(2, "big") + octets[4:length])


@book.case()
def padding_of_the_link_is_no_payload_at_the_bridge(case: Case) -> None:
    """What lies beyond the packet's own length is cut off before anything is made of it."""
    splice = Splice()
    handoff = splice.at_bridge("PA", payload=REQUEST)

    case.drops("unknown_flow", bytes(splice.at_bridge("A")) + bytes(6))
    case.sends("replayed", bytes(handoff) + b"padding", splice.syn())
    case.sends("opened", bytes(splice.syn_ack()) + bytes(4),
               splice.at_server("PA", payload=REQUEST))
    case.sends("to_client", bytes(splice.from_server("A", 1, END, b"x", ms=(1, 0))) + bytes(5),
               splice.at_client("A", 1, END, b"x", ms=(1, 0)))


@book.case()
def other_traffic_of_the_host_is_left_to_it(case: Case) -> None:
    """Direct connections, other protocols, other ports of the server: none of ours."""
    direct = {"src": "192.168.33.1", "sport": 40000}

    case.passes(
        whole(**direct, dst=SERVER, dport=8080, seq=1, flags="S"),
        whole(**direct, dst=BRIDGE, dport=22, seq=1, flags="S"),
        whole(**direct, dst=BRIDGE, dport=22, seq=1, ack=1, flags="PA", tos=TAG, payload=b"x"),
        whole(src=SERVER, sport=22, dst="192.168.33.1", dport=40000, seq=1, ack=1, flags="A"),
        IP(src="192.168.33.1", dst=BRIDGE, tos=TAG, id=1) / UDP(sport=80, dport=80) / b"x",
        IP(src=SERVER, dst="192.168.33.1", id=1) / UDP(sport=8080, dport=80) / b"x",
    )


# --- ICMP ---


def _quote(splice: Splice, **fields: object) -> tuple[bytes, bytes]:
    """A reply as a router on the way quotes it, and as the server must see it quoted.

    Its TCP checksum stays that of the packet that the router saw.
    """
    stack = {"payload": b"q" * 600, "ttl": 61, "ms": (40, 30), **fields}
    seen = bytes(splice.at_client("PA", 5001, END, **stack))
    sent = splice.from_server("PA", 5001, END, **stack)
    return seen, bytes(changed(sent, chksum=IP(seen)[TCP].chksum))


def _at_server(error: Packet, quoted: bytes) -> Packet:
    """An ICMP error as it leaves for the server, about its own packet."""
    made = changed(error, dst=SERVER, tos=error[IP].tos & 3, ttl=error[IP].ttl - 1)
    made[ICMP].remove_payload()
    return made / Raw(quoted)


@book.case()
def fragmentation_needed_reaches_the_server_about_its_own_packet(case: Case) -> None:
    """The quotation becomes what the server sent: its address, port, sequence number and TSval,
    whether 8 octets of TCP are quoted, the whole header, or much of the payload too."""
    splice = Splice()
    seen, sent = _quote(splice)

    splice.open(case)
    for length in (28, 40, 52, 72, 548):
        error = icmp_error(seen[:length], dst=BRIDGE, mtu=1400, tos=TAG | 1)
        case.sends("icmp_forwarded", error, _at_server(error, sent[:length]))


@book.case()
def other_errors_reach_the_server_too(case: Case) -> None:
    """Unreachable, time exceeded and parameter problem, about flows with timestamps and without."""
    for port, stamped in ((40000, True), (40001, False)):
        splice = Splice(Client(port, timestamps=stamped))
        seen, sent = _quote(splice)
        splice.open(case)
        for kind, code in ((3, 1), (3, 3), (3, 13), (11, 0), (12, 0)):
            error = icmp_error(seen[:60], dst=BRIDGE, kind=kind, code=code, tos=TAG)
            case.sends("icmp_forwarded", error, _at_server(error, sent[:60]))


@book.case()
def an_error_about_no_open_flow_is_dropped(case: Case) -> None:
    """Nothing is told to the server about a flow that nobody knows, or that is not open yet."""
    splice, other = Splice(), Splice(Client(40001))
    error = icmp_error(_quote(splice)[0][:60], dst=BRIDGE, tos=TAG, mtu=1400)

    case.drops("unknown_flow", error)
    case.sends("replayed", splice.at_bridge("PA", payload=REQUEST), splice.syn())
    case.drops("unknown_flow", error,
               icmp_error(_quote(other)[0][:60], dst=BRIDGE, tos=TAG, mtu=1400))


@book.case()
def an_error_damaged_or_late_is_dropped(case: Case) -> None:
    """An ICMP error whose checksum is wrong is not repaired by translating it, and one with a TTL
    of 1 goes no further."""
    splice = Splice()
    seen, sent = _quote(splice)
    error = icmp_error(seen[:60], dst=BRIDGE, tos=TAG, mtu=1400, ttl=2)
    octets = bytearray(bytes(error))
    octets[60] ^= 1

    splice.open(case)
    case.drops("bad_checksum", bytes(octets))
    case.drops("ttl_expired", icmp_error(seen[:60], dst=BRIDGE, tos=TAG, mtu=1400, ttl=1))
    case.sends("icmp_forwarded", error, _at_server(error, sent[:60]))


@book.case()
def an_error_cut_short_is_dropped_at_the_bridge(case: Case) -> None:
    """Without a whole quotation of an IP header and 8 octets, nothing can be told."""
    splice = Splice()
    seen, _ = _quote(splice)

    splice.open(case)
    for length in (0, 7, 20, 27):
        case.drops("malformed_icmp", icmp_error(seen[:length], dst=BRIDGE, tos=TAG))
    case.drops("malformed_icmp", icmp_error(b"\x46" + seen[1:60], dst=BRIDGE, tos=TAG))
    whole_error = bytes(icmp_error(seen[:60], dst=BRIDGE, tos=TAG))
    for length in (27, 28, 55):
        case.drops("malformed_ip", whole_error[:length])


@book.case()
def icmp_for_the_bridge_s_host_is_left_to_it(case: Case) -> None:
    """Echo requests, errors without the tag, about another port or address, and about other
    protocols are the host's own."""
    splice = Splice()
    reply = splice.at_client("PA", 5001, END, b"q")
    datagram = IP(src=BRIDGE, dst="10.0.0.53", id=1) / UDP(sport=80, dport=53) / b"query"

    splice.open(case)
    case.passes(
        IP(src="192.168.33.1", dst=BRIDGE, tos=TAG, id=1) / ICMP(type=8) / b"ping",
        icmp_error(bytes(reply), dst=BRIDGE, tos=0),
        icmp_error(bytes(reply), dst=BRIDGE, tos=7 << 2),
        icmp_error(bytes(changed(reply, sport=22)), dst=BRIDGE, tos=TAG),
        icmp_error(bytes(changed(reply, src=BRIDGE)), dst=BRIDGE, tos=TAG),
        icmp_error(bytes(datagram), dst=BRIDGE, kind=3, code=3),
        icmp_error(bytes(datagram), dst=BRIDGE, kind=3, code=3, tos=TAG),
    )
