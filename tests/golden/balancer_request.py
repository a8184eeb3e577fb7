"""The key in the first payload: what it is, and that it is found however the octets are cut.

Choices among three backends are Maglev's, by this folder's own implementation.
"""

from scapy.packet import Packet

from tests.golden.case import Book, Case
from tests.golden.hashes import maglev
from tests.golden.payloads import HOST, POST_QUANTUM_SHARE_LEN, client_hello, pieces, records
from tests.golden.stacks import Client, balancer_config, to_bridge

book = Book("balancer", balancer_config)
ALL = (1, 2, 3)
SOURCE = bytes((192, 168, 33, 1))
AT_ONCE = 8  # segments that wait without an acknowledgment


def _segments(client: Client, octets: bytes, *cuts: int) -> list[Packet]:
    """A stream in segments that are cut at the given offsets."""
    return [client.segment("PA", seq, payload=piece) for seq, piece in pieces(octets, cuts)]


def _split(case: Case, client: Client, octets: bytes, cuts: list[int], complete_at: int,
           backend_id: int) -> None:
    """Segments that are cut at `cuts` are held until octet `complete_at`, then leave in order."""
    waiting: list[Packet] = []
    opened = False
    for packet, end in zip(_segments(client, octets, *cuts), [*cuts, len(octets)], strict=True):
        waiting.append(packet)
        if end < complete_at:
            case.holds(packet)
            continue
        reason = "forwarded" if opened else "handoff"
        case.sends(reason, packet, *(to_bridge(kept, backend_id) for kept in waiting))
        waiting, opened = [], True


def _octet_by_octet(case: Case, client: Client, octets: bytes, complete_at: int, backend_id: int
                    ) -> None:
    """Octets are held until `complete_at`. From the ninth on they are acknowledged, and leave
    joined; the last one, which was not, leaves as it came."""
    for end, packet in enumerate(_segments(client, octets, *range(1, len(octets))), 1):
        if end <= AT_ONCE:
            case.holds(packet)
        elif end < complete_at:
            case.sends("acknowledged", packet, client.taken(octets[:end]))
        elif end == complete_at:
            case.sends("handoff", packet, to_bridge(client.joined(octets[:end - 1]), backend_id),
                       to_bridge(packet, backend_id))
        else:
            case.sends("forwarded", packet, to_bridge(packet, backend_id))
    answered = client.segment("A", 1 + len(octets), 2)
    case.sends("forwarded", answered, to_bridge(answered, backend_id))


@book.case(backends=ALL)
def a_path_chooses_its_backend_as_maglev_says(case: Case) -> None:
    """Each path goes to the backend in its slot of the Maglev table, whatever query follows it and
    whichever port asks."""
    paths = [b"/", b"/a", b"/b", b"/index.html", b"/static/app.js", b"/%7Euser/",
             b"/very/" + b"x" * 80]
    for index, path in enumerate(paths):
        for port, query in ((41000 + index, b""), (42000 + index, b"?q=%d" % index)):
            client = Client(port, timestamps=False)
            request = client.segment("PA", payload=b"GET " + path + query + b" HTTP/1.1\r\n\r\n")
            case.sends("handoff", request, to_bridge(request, maglev(path, *ALL)))


GET = b"GET /shop/cart/items?user=anna&x=1 HTTP/1.1\r\nHost: Shop.Example.net:8080\r\n" \
      b"x-SESSION:  s17 \r\nCookie: a=b; sid=77; sidx=1\r\n\r\n"
BARE = b"GET /shop HTTP/1.1\r\n\r\n"
ABSOLUTE = b"\r\n\r\nPUT http://USER@Shop.Example.net:81/shop/cart/items?user=b HTTP/1.0\r\n\r\n"
CONNECT = b"CONNECT Shop.Example.net:443 HTTP/1.1\r\n"
CONNECTS = [CONNECT + b"\r\n", CONNECT + b"Host: other.example\r\n\r\n"]
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_HTTP = b"\x00\x01\x02\x03 not a request"
# (key, (payload, the key's octets) …)
KEYS: list[tuple[str, list[tuple[bytes, bytes]]]] = [
    ("http.path", [(GET, b"/shop/cart/items"), (ABSOLUTE, b"/shop/cart/items"), (HTTP2, SOURCE),
                   (NO_HTTP, SOURCE), (b"OPTIONS * HTTP/1.1\r\n\r\n", SOURCE),
                   (b"GET http://h HTTP/1.1\r\n\r\n", b"/"), (CONNECTS[0], SOURCE),
                   (b"GET /shop cart HTTP/1.1\r\n\r\n", b"/shop"),
                   (b"GET /shop HTTP/1.0.8\r\n\r\n", b"/shop")]),
    ("http.path,depth=2", [(GET, b"/shop/cart"), (BARE, b"/shop")]),
    ("http.path,len=7", [(GET, b"/shop/c"), (BARE, b"/shop")]),
    ("http.target", [(GET, b"/shop/cart/items?user=anna&x=1")]),
    ("http.host+path", [(GET, b"shop.example.net/shop/cart/items"), (BARE, SOURCE),
                        (ABSOLUTE, b"shop.example.net/shop/cart/items")]),
    ("http.host", [(GET, b"shop.example.net"), (ABSOLUTE, b"shop.example.net"),
                   *((request, b"shop.example.net") for request in CONNECTS),
                   (b"GET / HTTP/1.0.8\r\nHost: shop.example.net\r\n\r\n", SOURCE)]),
    ("http.header:X-Session", [(GET, b"s17"), (BARE, SOURCE)]),
    ("http.cookie:sid", [(GET, b"77"), (BARE, SOURCE)]),
    ("http.query:user", [(GET, b"anna"), (BARE, SOURCE)]),
    ("payload:5", [(GET, b"GET /"), (NO_HTTP, NO_HTTP[:5])]),
    ("tls.sni", [(records(client_hello()), HOST), (GET, SOURCE),
                 (records(client_hello(b"SHOP.example.NET")), HOST)]),
    ("source", [(GET, SOURCE)]),
]


@book.case(backends=ALL, services=[
    {"port": 1000 + index, "dscp": index + 1, "key": key} for index, (key, _) in enumerate(KEYS)
])
def every_kind_of_key_is_found_in_its_payload(case: Case) -> None:
    """Each service takes the key that it is configured to take; where there is none, it falls back
    to the client's address."""
    for index, (_, requests) in enumerate(KEYS):
        for number, (payload, key) in enumerate(requests):
            client = Client(42000 + 10 * index + number, vip_port=1000 + index, timestamps=False)
            request = client.segment("PA", payload=payload)
            expected = to_bridge(request, maglev(key, *ALL), dscp=index + 1)
            case.sends("handoff", request, expected)


@book.case(backends=ALL, services=[{"key": "source+port"}])
def source_and_port_together_are_a_key(case: Case) -> None:
    """With `source+port` a client's connections spread over the backends."""
    for port in range(43000, 43012):
        client = Client(port, timestamps=False)
        request = client.segment("PA", payload=b"\x00")
        key = SOURCE + port.to_bytes(2, "big")
        case.sends("handoff", request, to_bridge(request, maglev(key, *ALL)))


@book.case(backends=ALL, services=[{"key": "http.cookie:sid", "fallback": "http.path"}])
def a_fallback_key_of_its_own_is_used(case: Case) -> None:
    """Where a request has no such cookie, the configured fallback counts, and only where that is
    missing too the client's address."""
    for port, payload, key in ((40000, GET, b"77"), (40001, BARE, b"/shop"),
                               (40002, HTTP2, SOURCE)):
        client = Client(port, timestamps=False)
        request = client.segment("PA", payload=payload)
        case.sends("handoff", request, to_bridge(request, maglev(key, *ALL)))


@book.case(backends=ALL, services=[{"key": "http.host+path"}])
def a_request_split_at_any_octet_goes_where_the_whole_goes(case: Case) -> None:
    """Wherever a request is cut in two, the first part is held until the key is whole, both leave
    in order, and the backend is that of the whole request."""
    request = b"GET /shop?a=1 HTTP/1.1\r\nAccept: */*\r\nHost: shop.example.net\r\n\r\n"
    complete_at = request.index(b"net\r\n") + 5
    chosen = maglev(b"shop.example.net/shop", *ALL)

    for cut in range(1, len(request)):
        client = Client(40000 + cut, timestamps=False)
        _split(case, client, request, [cut], complete_at, chosen)


@book.case(backends=ALL)
def a_request_that_comes_octet_by_octet_is_read(case: Case) -> None:
    """Each octet in a segment of its own: all are held until the space that ends the path, and
    acknowledged before the client's window is full."""
    request = b"\r\nGET /cart/7 HTTP/1.1\r\n\r\n"

    _octet_by_octet(case, Client(timestamps=False), request, request.index(b" HTTP") + 1,
                    maglev(b"/cart/7", *ALL))


@book.case(backends=ALL, services=[{"key": "tls.sni"}])
def a_client_hello_split_at_any_octet_goes_where_the_whole_goes(case: Case) -> None:
    """Wherever a ClientHello is cut in two, its parts leave together for the server name's
    backend."""
    hello = records(client_hello(share_len=16))
    complete_at = hello.index(HOST) + len(HOST)

    for cut in range(1, len(hello)):
        client = Client(40000 + cut, timestamps=False)
        _split(case, client, hello, [cut], complete_at, maglev(HOST, *ALL))


@book.case(backends=ALL, services=[{"key": "tls.sni"}])
def a_client_hello_that_comes_octet_by_octet_is_read(case: Case) -> None:
    """Each octet of a ClientHello in a segment of its own, in records of its own as well."""
    message = client_hello(share_len=16)
    hello = records(message, 1, 4, 5, 40, 60)
    complete_at = hello.index(HOST[-8:]) + 8

    _octet_by_octet(case, Client(timestamps=False), hello, complete_at, maglev(HOST, *ALL))


@book.case(backends=ALL, services=[{"key": "tls.sni"}])
def a_post_quantum_client_hello_in_several_segments_is_read(case: Case) -> None:
    """A ClientHello with a post-quantum key share fills more than one segment; a server name that
    comes after the share is waited for, one that comes before it is not."""
    chosen = maglev(HOST, *ALL)
    for port, name_last in ((40000, True), (40010, False)):
        hello = records(client_hello(share_len=POST_QUANTUM_SHARE_LEN, name_last=name_last))
        complete_at = hello.index(HOST) + len(HOST)
        for number, cuts in enumerate(([], [1208], [536, 1072], [1, 6, 90, 1300])):
            client = Client(port + number, timestamps=False)
            _split(case, client, hello, cuts, complete_at, chosen)


@book.case(backends=ALL, services=[{"key": "tls.sni"}])
def a_client_hello_over_several_records_is_read(case: Case) -> None:
    """Record headers between the octets of a ClientHello, of post-quantum size too and even within
    the server name, do not hide it; they may be cut by segments themselves."""
    chosen = maglev(HOST, *ALL)
    message = client_hello(share_len=POST_QUANTUM_SHARE_LEN, name_last=True)
    within = message.index(HOST) + 5
    for port, cuts in ((40000, [1]), (40001, [3, 39, 600]), (40002, [within])):
        hello = records(message, *cuts)
        complete_at = hello.index(HOST[-8:]) + 8
        _split(case, Client(port, timestamps=False), hello, [8, 606, 1206], complete_at, chosen)


@book.case(backends=ALL, services=[{"key": "tls.sni"}])
def a_client_hello_without_a_name_falls_back(case: Case) -> None:
    """No server_name, a record that is no handshake, a ServerHello, SSL 2: the fallback decides,
    and as soon as it is clear."""
    hello = records(client_hello())
    nameless = client_hello(b"").replace(b"\0\0\0\x05\0\x03\0\0\0", b"\x7f\x01\0\x05\0\x03\0\0\0")
    for port, payload in enumerate([
        records(nameless), b"\x17" + hello[1:], records(b"\2" + client_hello()[1:]),
        b"\x80\x2e\x01\x00\x02" + bytes(41), b"\x16\x02" + hello[2:], b"\x16\x03\x01\0\0" + hello,
    ], 40000):
        client = Client(port, timestamps=False)
        request = client.segment("PA", payload=payload)
        case.sends("handoff", request, to_bridge(request, maglev(SOURCE, *ALL)))
