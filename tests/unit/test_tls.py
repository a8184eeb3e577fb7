"""The server name of ClientHellos, as OpenSSL makes them and as browsers send them."""

import ssl
import struct

import pytest

from balancer.keys.request import NEED_MORE, NO_KEY, KeySpec, extract

SNI = KeySpec("tls.sni")
NAME = b"www.example.com"


def server_name(payload: bytes, complete: bool = False) -> object:
    return extract(SNI, payload, b"", 0, complete)


def openssl_hello(host: str | None, *, max_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
                  protocols: int = 0) -> bytes:
    """The first record of a client. protocols: how many it offers by ALPN, for size."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = max_version
    if protocols:
        context.set_alpn_protocols([f"protocol-{number:04}" for number in range(protocols)])
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=host).do_handshake()
    return outgoing.read()


def vector(length_len: int, octets: bytes) -> bytes:
    return len(octets).to_bytes(length_len, "big") + octets


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack("!H", kind) + vector(2, content)


def sni(name: bytes, name_type: int = 0) -> bytes:
    return extension(0, vector(2, bytes([name_type]) + vector(2, name)))


GREASE = extension(0x2A2A, b"")
KEY_SHARE = extension(51, vector(2, b"\x5a\x5a" + vector(2, b"\0") + b"\x11\xec"
                                 + vector(2, bytes(1216)) + b"\0\x1d" + vector(2, bytes(32))))
ENCRYPTED_HELLO = extension(0xFE0D, bytes(186))


def hello(*extensions: bytes) -> bytes:
    """A ClientHello message: RFC 8446 §4.1.2."""
    block = vector(2, b"".join(extensions)) if extensions else b""
    ciphers = b"\xca\xca\x13\x01\x13\x02\x13\x03\xc0\x2b"
    return b"\x01" + vector(3, b"\x03\x03" + bytes(range(32)) + vector(1, bytes(32))
                            + vector(2, ciphers) + vector(1, b"\0") + block)


def records(message: bytes, size: int = 16384) -> bytes:
    """The message in handshake records of `size` octets."""
    return b"".join(b"\x16\x03\x01" + vector(2, message[off:off + size])
                    for off in range(0, len(message), size))


POST_QUANTUM = hello(GREASE, KEY_SHARE, ENCRYPTED_HELLO, extension(16, bytes(200)), sni(NAME),
                     GREASE)
HELLOS = {
    "OpenSSL, TLS 1.3": (openssl_hello("www.example.com"), NAME),
    "OpenSSL, TLS 1.2": (
        openssl_hello("www.example.com", max_version=ssl.TLSVersion.TLSv1_2), NAME),
    "OpenSSL, upper case": (openssl_hello("WWW.Example.COM"), NAME),
    "OpenSSL, an international name": (openssl_hello("b\u00fccher.example"),
                                       b"xn--bcher-kva.example"),
    "OpenSSL, 4 kB": (openssl_hello("www.example.com", protocols=250), NAME),
    "OpenSSL, no name": (openssl_hello(None), NO_KEY),
    "post-quantum, the name late": (records(POST_QUANTUM), NAME),
    "post-quantum, several records": (records(POST_QUANTUM, 500), NAME),
    "records of one octet": (records(hello(GREASE, sni(NAME)), 1), NAME),
    "then another record": (records(POST_QUANTUM, 700) + b"\x14\x03\x03\0\1\1", NAME),
    "then no record": (records(POST_QUANTUM) + b"GET / HTTP/1.1", NAME),
    "two names": (records(hello(sni(b"A.example"), sni(b"b.example"))), b"a.example"),
    "no extensions": (records(hello()), NO_KEY),
    "no name": (records(hello(GREASE, KEY_SHARE)), NO_KEY),
    "an empty name": (records(hello(sni(b""))), NO_KEY),
    "a name of another type": (records(hello(sni(NAME, 1))), NO_KEY),
    "an empty extension": (records(hello(extension(0, b""), extension(16, bytes(99)))), NO_KEY),
    "a name longer than its extension": (
        records(hello(extension(0, b"\0\x0a\0\0\x07abc"), extension(16, b"defghijk"))), NO_KEY),
    "an extension longer than the message": (
        records(b"\x01" + vector(3, hello(GREASE)[4:-4] + b"\x99\x99\x00\x99")), NO_KEY),
    "a message cut inside": (records(b"\x01\0\0\x20" + bytes(60)), NO_KEY),
    "a record of another type within": (
        records(hello(sni(NAME), KEY_SHARE)[:600]) + b"\x17\x03\x03\0\1\1", NAME),
    "a record of another type before the name": (
        records(POST_QUANTUM[:600]) + b"\x17\x03\x03\0\1\1", NO_KEY),
    "no record": (b"GET / HTTP/1.1\r\n\r\n", NO_KEY),
    "an alert": (b"\x15\x03\x01\0\2\2\x28", NO_KEY),
    "another handshake message": (records(b"\x02" + POST_QUANTUM[1:]), NO_KEY),
    "an empty record": (b"\x16\x03\x01\0\0" + records(POST_QUANTUM), NO_KEY),
    "a record too long": (b"\x16\x03\x01\x40\x01" + POST_QUANTUM, NO_KEY),
    "a hello too long": (records(b"\x01\x01" + bytes(999)), NO_KEY),
    "another version": (b"\x16\x02" + records(POST_QUANTUM)[2:], NO_KEY),
}


@pytest.mark.parametrize("case", HELLOS)
def test_no_split_changes_the_name_of(case: str) -> None:
    payload, expected = HELLOS[case]
    answers = [server_name(payload[:end]) for end in range(len(payload) + 1)]
    settled = [answer for answer in answers if answer is not NEED_MORE]

    assert settled
    assert all(answer == expected for answer in settled)
    assert answers[len(answers) - len(settled):] == settled


def test_a_post_quantum_hello_needs_more_than_one_segment() -> None:
    assert len(POST_QUANTUM) > 1700


@pytest.mark.parametrize("payload", [b"G", b"\x15", b"\x17", b"\x80", b"\x16\x02"])
def test_what_is_no_handshake_record_is_known_at_once(payload: bytes) -> None:
    assert server_name(payload) is NO_KEY


def test_the_name_is_known_with_its_last_octet() -> None:
    payload = records(hello(sni(NAME), KEY_SHARE))
    end = payload.index(NAME) + len(NAME)

    assert server_name(payload[:end]) == NAME
    assert server_name(payload[:end - 1]) is NEED_MORE


def test_a_name_that_has_begun_counts_when_no_more_comes() -> None:
    payload = records(hello(sni(NAME), KEY_SHARE))
    name_off = payload.index(NAME)

    assert server_name(payload[:name_off + 3], complete=True) == b"www"
    assert server_name(payload[:name_off], complete=True) is NO_KEY
