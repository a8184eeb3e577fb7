"""The server name of ClientHellos that OpenSSL makes, in any records and however they arrive."""

import ssl
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.keys.request import NEED_MORE, NO_KEY, KeySpec, extract

SNI = KeySpec("tls.sni")
LABEL = st.text("abcXYZ019-", min_size=1, max_size=20).filter(
    lambda label: label[0] != "-" != label[-1] and label[2:4] != "--"
)
# OpenSSL sends no name for what is an address, which a label of digits at the end would make it.
NAME = st.tuples(st.lists(LABEL, min_size=1, max_size=4).map(".".join), st.sampled_from(
    ["example", "Test", "localdomain"])).map(".".join)
PROTOCOLS = st.sampled_from([0, 1, 90])
VERSIONS = st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@cache
def context(version: ssl.TLSVersion, protocols: int) -> ssl.SSLContext:
    """protocols: how many are offered by ALPN, for size."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.maximum_version = version
    if protocols:
        made.set_alpn_protocols([f"protocol-{number:02}" for number in range(protocols)])
    return made


def hello(name: str | None, version: ssl.TLSVersion, protocols: int) -> bytes:
    """A ClientHello without its record's header."""
    outgoing = ssl.MemoryBIO()
    client = context(version, protocols).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    octets = outgoing.read()
    assert int.from_bytes(octets[3:5]) == len(octets) - 5
    return octets[5:]


def records(message: bytes, size: int) -> bytes:
    """The message in records of `size` octets (RFC 8446 §5.1)."""
    pieces = (message[off:off + size] for off in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2) + piece for piece in pieces)


def server_name(payload: bytes, complete: bool = False) -> object:
    return extract(SNI, payload, b"", 0, complete)


HELLOS = st.builds(
    lambda name, version, protocols: (name, hello(name, version, protocols)),
    st.none() | NAME, VERSIONS, PROTOCOLS,
)


@settings(max_examples=60)
@given(HELLOS, st.integers(1, 2000), st.binary(max_size=60))
def test_the_name_is_read_whatever_follows(
    made: tuple[str | None, bytes], size: int, trailing: bytes
) -> None:
    name, message = made
    payload = records(message, size)
    expected = NO_KEY if name is None else name.lower().encode()

    assert server_name(payload) == expected
    assert server_name(payload + trailing) == expected
    assert server_name(payload + trailing, complete=True) == expected


@settings(max_examples=30)
@given(HELLOS, st.integers(1, 2000), st.integers(1, 20))
def test_octet_by_octet_the_name_is_awaited_and_then_stays(
    made: tuple[str | None, bytes], size: int, step: int
) -> None:
    """And it is known as soon as its last octet is there."""
    name, message = made
    payload = records(message, size)

    answers = [server_name(payload[:end]) for end in range(0, len(payload), step)]
    answers.append(server_name(payload))

    waited = answers.index(answers[-1])
    assert answers[:waited] == [NEED_MORE] * waited
    assert answers[waited:] == [answers[-1]] * (len(answers) - waited)
    if name is not None and size >= len(message):
        end = payload.lower().index(name.lower().encode()) + len(name)
        assert server_name(payload[:end]) == name.lower().encode()
        assert server_name(payload[:end - 1]) is NEED_MORE


@settings(max_examples=150)
@given(HELLOS, st.integers(1, 2000), st.floats(0, 1), st.integers(1, 255))
def test_a_spoilt_hello_gives_an_answer_that_no_split_changes(
    made: tuple[str | None, bytes], size: int, where: float, change: int
) -> None:
    payload = bytearray(records(made[1], size))
    payload[int(where * (len(payload) - 1))] ^= change
    whole = server_name(bytes(payload))

    for end in range(0, len(payload), 7):
        assert server_name(bytes(payload[:end])) in (whole, NEED_MORE)
    assert server_name(bytes(payload), complete=True) is not NEED_MORE
