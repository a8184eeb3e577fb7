"""What is made of an answer, whole and octet by octet."""

from ipaddress import IPv4Address

import pytest

from balancer.health.request import Outcome, Request, client_hello, request_of, unchunked
from balancer.health.settings import Check

VIP = IPv4Address("192.0.2.10")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nall is fine"
CHUNKED = (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n"
           b"6;x=y\r\nall is\r\n5\r\n fine\r\n0\r\n\r\n")


def request(**check: object) -> Request:
    found = request_of(Check(**check), VIP)  # type: ignore[arg-type]
    assert found is not None
    return found


def judged(asked: Request, answer: bytes) -> bool | None:
    """The same, however it comes: whole, and as soon as enough of it is there."""
    whole = asked.judge(answer, True)
    assert whole is not None
    early = [outcome for end in range(1, len(answer))
             if (outcome := asked.judge(answer[:end], False))]
    assert {outcome.is_passed for outcome in early} <= {whole.is_passed}
    return whole.is_passed


def test_no_check_sends_nothing() -> None:
    assert request_of(Check(), VIP) is None


def test_a_request_is_what_the_settings_say() -> None:
    assert request(kind="http", path="/health", host="example.org").octets.startswith(
        b"GET /health HTTP/1.1\r\nHost: example.org\r\n")
    assert request(kind="http", method="HEAD").octets.startswith(
        b"HEAD / HTTP/1.1\r\nHost: 192.0.2.10\r\n")


@pytest.mark.parametrize("answer, check, passed", [
    (OK, {}, True),
    (b"HTTP/1.0 204 \r\n\r\n", {}, True),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", {}, False),
    (b"HTTP/1.1 404 Not Found\r\n\r\n", {"status": (404, 404)}, True),
    (b"HTTP/1.1 302 Found\r\n\r\n", {"status": (200, 299)}, False),
    (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, {}, True),
    (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 500 No\r\n", {}, False),
    (b"SSH-2.0-OpenSSH_9.2\r\n", {}, False),
    (b"HTTP/2.0 200 OK\r\n", {}, False),
    (b"\x15\x03\x01\x00\x02\x02\x46", {}, False),
    (OK, {"expect": "is fine"}, True),
    (OK, {"expect": "Content"}, False),  # only the body counts
    (CHUNKED, {"expect": "all is fine"}, True),
    (CHUNKED, {"expect": "x=y"}, False),
])
def test_http(answer: bytes, check: dict[str, object], passed: bool) -> None:
    assert judged(request(kind="http", **check), answer) is passed


def test_a_status_is_enough() -> None:
    assert request(kind="http").judge(b"HTTP/1.1 200 ", False) == \
        Outcome(True, "answers with status 200")
    assert request(kind="http", expect="x").judge(b"HTTP/1.1 503 ", False) == \
        Outcome(False, "answers with status 503")


@pytest.mark.parametrize("answer, passed", [
    (b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76", True),
    (b"\x15\x03\x01\x00\x02\x02\x70", False),
    (b"\x16\x03\x03\x00\x7a\x01\x00\x00\x76", False),
    (b"HTTP/1.1 400 Bad Request\r\n", False),
])
def test_tls(answer: bytes, passed: bool) -> None:
    assert judged(request(kind="tls", name="example.org"), answer) is passed


def test_a_client_hello_has_the_name_and_fits_a_segment() -> None:
    hello = client_hello("www.example.org")

    assert b"www.example.org" in hello
    assert hello[:1] == b"\x16"
    assert len(hello) < 1000
    assert client_hello("")[:1] == b"\x16"


@pytest.mark.parametrize("answer, passed", [(b"+PONG\r\n", True), (b"-ERR\r\n", False)])
def test_payload(answer: bytes, passed: bool) -> None:
    assert judged(request(kind="payload", send="PING\r\n", expect="+PONG"), answer) is passed


def test_what_is_no_chunk_ends_a_body() -> None:
    assert unchunked(b"3\r\nabc\r\nzzz\r\n") == b"abc"
    assert unchunked(b"ffffffff0\r\nabc") == b""
