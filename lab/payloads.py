"""First payloads for the benchmarks."""

import ssl


def request(path_len: int) -> bytes:
    """A GET with a path of so many octets, and a Host."""
    return b"GET /" + b"x" * (path_len - 1) + b" HTTP/1.1\r\nHost: a.example\r\n\r\n"


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
