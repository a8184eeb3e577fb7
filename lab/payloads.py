"""First payloads for the benchmarks."""

import ssl


def request(path_len: int) -> bytes:
    """A GET with a path of so many octets, and a Host."""
    return b"GET /" + b"x" * (path_len - 1) + b" HTTP/1.1\r\nHost: a.example\r\n\r\n"


def browsers_request() -> bytes:
    """A GET of 500 octets, with a query, a header and a cookie that are called `session`."""
    lines = [
        b"GET /shop/list?sort=price&page=2&session=4711&lang=en HTTP/1.1",
        b"Host: shop.example.net",
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        b"Accept-Language: en-US,en;q=0.5", b"Accept-Encoding: gzip, deflate, br, zstd",
        b"Connection: keep-alive", b"X-Session: 0815",
        b"Cookie: consent=yes; theme=dark; session=31415926535; basket=7",
    ]
    lines.append(b"X-Rest: " + b"x" * (500 - len(b"\r\n".join(lines)) - 14))
    return b"\r\n".join([*lines, b"", b""])


def client_hello() -> bytes:
    """What Python's own TLS stack says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        incoming, outgoing, server_hostname="shop.example.net"
    )
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
