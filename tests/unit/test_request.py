"""The key of a first payload: what it is, and from which octet on it is known."""

import time
from ipaddress import IPv4Address

import pytest

from balancer.keys.request import NEED_MORE, NO_KEY, KeySpec, choose_key, extract

SOURCE = IPv4Address("192.0.2.7").packed
SPORT = 0x1234
GET = (
    b"GET /img/a/logo.png?v=12&id=7&v=13 HTTP/1.1\r\n"
    b"Host: WWW.Example.com:8080\r\n"
    b"User-Agent: test/1.0\r\n"
    b"X-Id:\t seven \r\n"
    b"Cookie: a=1; sid=xyz==; sid=2\r\n"
    b"x-id: eight\r\n"
    b"\r\n"
    b"Host: body.example\r\n\r\n"
)


def key(spec: str, payload: bytes | bytearray, complete: bool = False) -> object:
    return extract(KeySpec.parse(spec), payload, SOURCE, SPORT, complete)


def check_every_split(spec: str, payload: bytes) -> object:
    """The key of the whole payload, which no prefix contradicts."""
    whole = key(spec, payload)
    answers = [key(spec, payload[:end]) for end in range(len(payload) + 1)]
    settled = [answer for answer in answers if answer is not NEED_MORE]

    assert all(answer == whole for answer in settled)
    assert answers[len(answers) - len(settled):] == settled  # once given, it stays
    return whole


# --- KeySpec ---

SPECS = [
    "http.path", "http.target", "http.host+path", "http.host", "http.header:X-Id",
    "http.cookie:sid", "http.query:v", "tls.sni", "payload:16", "source", "source+port",
    "http.path,depth=2", "http.path,len=32", "http.host+path,depth=2,len=32", "http.target,len=1",
]


@pytest.mark.parametrize("text", SPECS)
def test_a_spec_reads_as_it_is_written(text: str) -> None:
    assert str(KeySpec.parse(text)) == text


def test_modifiers_come_in_any_order() -> None:
    assert KeySpec.parse("http.path,len=9,depth=1") == KeySpec("http.path", depth=1, max_len=9)


@pytest.mark.parametrize("text, expected", [
    ("", "one of http.path"),
    ("http.pth", "one of http.path"),
    ("http.path:x", "one of http.path"),
    ("http.header", "http.header:NAME"),
    ("http.header:", "http.header:NAME"),
    ("http.header:a b", "http.header:NAME"),
    ("http.header:\u00e9", "http.header:NAME"),
    ("payload", "payload:N (N: 1 to 65535)"),
    ("payload:0", "payload:N"),
    ("payload:65536", "payload:N"),
    ("payload:-1", "payload:N"),
    ("payload:\u0663", "payload:N"),
    ("payload:" + "9" * 5000, "payload:N"),
    ("http.path,depth", "depth=N and len=N"),
    ("http.path,depth=0", "'depth=0'"),
    ("http.path,depth=x", "'depth=x'"),
    ("http.path,width=1", "'width=1'"),
    ("http.path,", "depth=N and len=N"),
    ("http.path,len=1,len=2", "once each"),
    ("http.host,depth=1", "depth and len with http.path"),
    ("source,len=1", "depth and len with http.path"),
])
def test_a_wrong_spec_says_what_would_be_right(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as wrong:
        KeySpec.parse(text)

    assert expected in str(wrong.value)


# --- HTTP ---

@pytest.mark.parametrize("spec, expected, known_after", [
    ("http.path", b"/img/a/logo.png", b"GET /img/a/logo.png?"),
    ("http.path,depth=1", b"/img", b"GET /img/"),
    ("http.path,depth=2", b"/img/a", b"GET /img/a/"),
    ("http.path,depth=3", b"/img/a/logo.png", b"GET /img/a/logo.png?"),
    ("http.path,len=6", b"/img/a", b"GET /img/a"),
    ("http.path,depth=2,len=5", b"/img/", b"GET /img/"),
    ("http.target", b"/img/a/logo.png?v=12&id=7&v=13", b"&v=13 "),
    ("http.host", b"www.example.com", b":8080\r\n"),
    ("http.host+path", b"www.example.com/img/a/logo.png", b":8080\r\n"),
    ("http.host+path,depth=1", b"www.example.com/img", b":8080\r\n"),
    ("http.header:x-ID", b"seven", b" seven \r\n"),
    ("http.cookie:a", b"1", b"Cookie: a=1;"),
    ("http.cookie:sid", b"xyz==", b"sid=xyz==;"),
    ("http.cookie:SID", NO_KEY, b"sid=2\r\n"),
    ("http.query:v", b"12", b"?v=12&"),
    ("http.query:id", b"7", b"&id=7&"),
    ("http.query:i", NO_KEY, b"&v=13 "),
    ("http.header:Absent", NO_KEY, b"x-id: eight\r\n\r\n"),
    ("payload:9", b"GET /img/", b"GET /img/"),
    ("tls.sni", NO_KEY, b"G"),
])
def test_a_key_is_known_as_soon_as_its_last_octet_is(
    spec: str, expected: object, known_after: bytes
) -> None:
    settled = GET.index(known_after) + len(known_after)

    assert check_every_split(spec, GET) == expected
    assert key(spec, GET[:settled]) == expected
    assert key(spec, GET[:settled - 1]) is NEED_MORE


REQUESTS = {
    "HTTP/1.0": (b"GET /a HTTP/1.0\r\nHost: h\r\n\r\n", b"/a", b"h"),
    "HTTP/1.0 without a Host": (b"GET /a HTTP/1.0\r\n\r\n", b"/a", NO_KEY),
    "HTTP/0.9": (b"GET /a\r\n", b"/a", NO_KEY),
    "a version to come": (b"GET /a HTTP/3.0\r\nHost: h\r\n\r\n", b"/a", NO_KEY),
    "no version at the line's end": (b"GET /a HTTP/1.1 x\r\nHost: h\r\n\r\n", b"/a", NO_KEY),
    "bare LF": (b"GET /a HTTP/1.1\nHost: h\n\nHost: b\n", b"/a", b"h"),
    "bare LF without headers": (b"GET /a HTTP/1.1\n\nHost: b\n", b"/a", NO_KEY),
    "leading empty lines": (b"\r\n\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n", b"/a", b"h"),
    "too many empty lines": (b"\r\n" * 17 + b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, NO_KEY),
    "a CR before the method": (b"\rGET /a HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, NO_KEY),
    "absolute form": (b"GET http://A.b:81/c?d HTTP/1.1\r\nHost: h\r\n\r\n", b"/c", b"a.b"),
    "absolute form, https": (b"GET HTTPS://a/ HTTP/1.1\r\nHost: h\r\n\r\n", b"/", b"a"),
    "absolute form, no path": (b"GET http://a.b HTTP/1.1\r\nHost: h\r\n\r\n", b"/", b"a.b"),
    "absolute form, only a query": (b"GET http://a?b HTTP/1.1\r\nHost: h\r\n\r\n", b"/", b"a"),
    "absolute form, user": (b"GET http://u:p@a:1/ HTTP/1.1\r\n\r\n", b"/", b"a"),
    "absolute form, IPv6": (b"GET http://[::F]:81/c HTTP/1.1\r\n\r\n", b"/c", b"[::f]"),
    "absolute form, no host": (b"GET http:///c HTTP/1.1\r\nHost: h\r\n\r\n", b"/c", NO_KEY),
    "another scheme": (b"GET ftp://a/ HTTP/1.1\r\n\r\n", NO_KEY, NO_KEY),
    "asterisk form": (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, b"h"),
    "authority form": (b"CONNECT A.b:443 HTTP/1.1\r\n\r\n", NO_KEY, b"a.b"),
    "authority form and a Host": (b"CONNECT a.b:443 HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, b"a.b"),
    "authority form, IPv6": (b"CONNECT [::F]:443 HTTP/1.1\r\n\r\n", NO_KEY, b"[::f]"),
    "authority form, no port": (b"CONNECT http HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, b"http"),
    "authority form, no host": (b"CONNECT :443 HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, NO_KEY),
    "authority form, HTTP/0.9": (b"CONNECT a.b:443\r\n", NO_KEY, b"a.b"),
    "authority form, not CONNECT's": (b"GET a.b:80 HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, b"h"),
    "CONNECT, absolute form": (b"CONNECT http://a/b HTTP/1.1\r\nHost: h\r\n\r\n", b"/b", b"a"),
    "CONNECT, another scheme": (b"CONNECT ftp://a HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, b"h"),
    "connect": (b"connect a.b:443 HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, b"h"),
    "a blank in the target": (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", b"/a", NO_KEY),
    "a version of three numbers": (b"GET /a HTTP/1.0.8\r\nHost: h\r\n\r\n", b"/a", NO_KEY),
    "two blanks before the version": (b"GET /a  HTTP/1.1\r\nHost: h\r\n\r\n", b"/a", NO_KEY),
    "a version in lower case": (b"GET /a http/1.1\r\nHost: h\r\n\r\n", b"/a", NO_KEY),
    "Host with an IPv6 address": (b"GET / HTTP/1.1\r\nhOST:[2001:DB8::1]:80\r\n\r\n", b"/",
                                  b"[2001:db8::1]"),
    "Host with half an IPv6 address": (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", b"/", NO_KEY),
    "empty Host": (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", b"/", NO_KEY),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"/", b"a"),
    "a name that ends in Host": (b"GET / HTTP/1.1\r\nX-Host: a\r\nHost: b\r\n\r\n", b"/", b"b"),
    "Host within a value": (b"GET / HTTP/1.1\r\nA: Host: a\r\nHost: b\r\n\r\n", b"/", b"b"),
    "a folded line": (b"GET / HTTP/1.1\r\nA: b\r\n Host: a\r\nHost: b\r\n\r\n", b"/", b"b"),
    "a blank before the colon": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"/", NO_KEY),
    "octets above ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", b"/\xc3\xa9",
                           b"\xc3\xa9"),
    "a hash sign": (b"GET /a#b?c HTTP/1.1\r\nHost: h\r\n\r\n", b"/a#b", b"h"),
    "a control octet in the path": (b"GET /a\x01 HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, NO_KEY),
    "a control octet in the query": (b"GET /a?\x01 HTTP/1.1\r\nHost: h\r\n\r\n", b"/a", NO_KEY),
    "a control octet behind the host": (b"GET http://a/\x01 HTTP/1.1\r\n\r\n", NO_KEY, b"a"),
    "a control octet in the host": (b"GET http://a\x01/b HTTP/1.1\r\n\r\n", NO_KEY, NO_KEY),
    "a tab": (b"GET\t/a HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, NO_KEY),
    "no target": (b"GET  HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, NO_KEY),
    "the longest method": (b"M" * 32 + b" /a HTTP/1.1\r\nHost: h\r\n\r\n", b"/a", b"h"),
    "a longer method": (b"M" * 33 + b" /a HTTP/1.1\r\nHost: h\r\n\r\n", NO_KEY, NO_KEY),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", NO_KEY, NO_KEY),
    "a ClientHello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", NO_KEY, NO_KEY),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", NO_KEY, NO_KEY),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_path_and_the_host_of(name: str) -> None:
    payload, path, host = REQUESTS[name]
    both = host + path if isinstance(host, bytes) and isinstance(path, bytes) else NO_KEY

    assert check_every_split("http.path", payload) == path
    assert check_every_split("http.host", payload) == host
    assert check_every_split("http.host+path", payload) == both


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", REQUESTS)
def test_no_split_changes_a_key(spec: str, name: str) -> None:
    check_every_split(spec, REQUESTS[name][0])


@pytest.mark.parametrize("target, expected", [
    (b"/?v", NO_KEY),
    (b"/?v=", NO_KEY),
    (b"/?v=&v=1", NO_KEY),
    (b"/?v&v=1", b"1"),
    (b"/?a=v=1", NO_KEY),
    (b"/?av=1", NO_KEY),
    (b"/v=1", NO_KEY),
    (b"/?v=%2F+", b"%2F+"),
    (b"/?v=a=b?c", b"a=b?c"),
    (b"http://h?v=1", b"1"),
])
def test_a_query_value_is_taken_as_it_stands(target: bytes, expected: object) -> None:
    assert check_every_split("http.query:v", b"GET " + target + b" HTTP/1.1\r\n\r\n") == expected


@pytest.mark.parametrize("line, expected", [
    (b"Cookie: sid=1", b"1"),
    (b"cookie:sid=1;b=2", b"1"),
    (b"Cookie: a=1;  sid=2 ; b=3", b"2"),
    (b'Cookie: sid="1"', b'"1"'),
    (b"Cookie: sid", NO_KEY),
    (b"Cookie: sid=", NO_KEY),
    (b"Cookie: asid=1; sid2=2", NO_KEY),
    (b"Cookie: a=1\r\nCookie: sid=2", NO_KEY),  # a client sends one Cookie header
])
def test_a_cookie(line: bytes, expected: object) -> None:
    payload = b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n"

    assert check_every_split("http.cookie:sid", payload) == expected


def haproxy_key(uri: bytes, depth: int, max_len: int) -> bytes:
    """What `balance uri` hashes, as its manual says: octet by octet, each slash a level."""
    slashes = 0
    for end, octet in enumerate(uri):
        if max_len and end == max_len:
            return uri[:end]
        slashes += octet == ord("/")
        if octet == ord("?") or (depth and octet == ord("/") and slashes == depth + 1):
            return uri[:end]
    return uri


@pytest.mark.parametrize("uri", [b"/", b"//", b"/a", b"/a/", b"/a/b/c/d", b"//a//b", b"/a/b?c/d"])
def test_depth_and_len_are_those_of_haproxys_balance_uri(uri: bytes) -> None:
    for depth in range(5):
        for max_len in range(10):
            spec = KeySpec("http.path", depth=depth, max_len=max_len)
            payload = b"GET " + uri + b" HTTP/1.1\r\n\r\n"

            assert extract(spec, payload, SOURCE, SPORT, False) == haproxy_key(uri, depth, max_len)
            assert check_every_split(str(spec), payload) == haproxy_key(uri, depth, max_len)


# --- complete, fallback, source ---

@pytest.mark.parametrize("spec, payload, expected", [
    ("http.path", b"GET /long/pa", b"/long/pa"),
    ("http.path", b"GET ", NO_KEY),
    ("http.path", b"GE", NO_KEY),
    ("http.path", b"", NO_KEY),
    ("http.path", b"GET http://h.exa", NO_KEY),
    ("http.path", b"GET /a\x01", NO_KEY),
    ("http.host", b"GET http://h.exa", b"h.exa"),
    ("http.host", b"CONNECT h.exa", b"h.exa"),
    ("http.host", b"GET / HTTP/1.1\r\nHost: h.exa", b"h.exa"),
    ("http.host", b"GET / HTTP/1.1\r\nHost: ", NO_KEY),
    ("http.host", b"GET / HTTP/1.1\r\nHos", NO_KEY),
    ("http.host+path", b"GET /a/b", NO_KEY),
    ("http.host+path", b"GET http://h/a/b", b"h/a/b"),
    ("http.header:A", b"GET / HTTP/1.1\r\nA: b\r", b"b"),
    ("http.cookie:a", b"GET / HTTP/1.1\r\nCookie: a=b", b"b"),
    ("http.query:a", b"GET /?a=b", b"b"),
    ("payload:9", b"abc", b"abc"),
    ("payload:9", b"", NO_KEY),
    ("tls.sni", b"\x16\x03\x01", NO_KEY),
])
def test_a_key_that_has_begun_counts_when_no_more_comes(
    spec: str, payload: bytes, expected: object
) -> None:
    assert key(spec, payload, complete=True) == expected


@pytest.mark.parametrize("spec, fallback, payload, expected", [
    ("http.path", "source+port", b"SSH-2.0-x\r\n", SOURCE + b"\x12\x34"),
    ("http.path", "payload:3", b"\x16\x03\x01\x02", b"\x16\x03\x01"),
    ("http.path", "payload:3", b"\x16\x03", NEED_MORE),
    ("http.path", "tls.sni", b"PRI * HTTP/2.0\r\n\r\n", SOURCE),
    ("http.header:A", "http.path", b"GET /a HTTP/1.1\r\n\r\n", b"/a"),
    ("http.header:A", "http.path", b"GET /a HTTP/1.1\r\n", NEED_MORE),
    ("http.header:A", "http.path", b"GET /a HTTP/1.1\r\nA:\r\n", b"/a"),
    ("source", "http.path", b"", SOURCE),
])
def test_the_fallback_counts_where_the_key_cannot_come(
    spec: str, fallback: str, payload: bytes, expected: object
) -> None:
    specs = KeySpec.parse(spec), KeySpec.parse(fallback)

    assert choose_key(*specs, payload, SOURCE, SPORT, False) == expected


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("fallback", SPECS)
def test_there_is_a_key_once_no_more_comes(spec: str, fallback: str) -> None:
    specs = KeySpec.parse(spec), KeySpec.parse(fallback)

    for payload in (b"", b"GE", b"GET /", b"\x16\x03", GET):
        assert isinstance(choose_key(*specs, payload, SOURCE, SPORT, True), bytes)


@pytest.mark.parametrize("spec", SPECS)
def test_a_bytearray_gives_the_same_key(spec: str) -> None:
    found = key(spec, bytearray(GET))

    assert found == key(spec, GET)
    assert not isinstance(found, bytearray)


# --- hostile octets ---

HOSTILE = {
    "blanks before a value": b"GET / HTTP/1.1\r\nHost:" + b" " * 65536,
    "blanks within a value": b"GET / HTTP/1.1\r\nHost: a" + b" " * 65536 + b"b\r",
    "carriage returns": b"GET / HTTP/1.1\r\n" + b"\r" * 65536,
    "empty lines": b"\r\n" * 32768,
    "a method without end": b"M" * 65536,
    "a path of slashes": b"GET " + b"/" * 65536,
    "parameters": b"GET /?" + b"a=&" * 21845,
    "cookies": b"GET / HTTP/1.1\r\nCookie: " + b"a=;" * 21845,
    "headers": b"GET / HTTP/1.1\r\n" + b"A:\r\n" * 16384,
    "almost the name": b"GET / HTTP/1.1\r\n" + b"X-I\n" * 16384,
    "TLS records of one octet": b"\x16\x03\x01\x00\x01\x01" * 10922,
}


@pytest.mark.parametrize("spec", [*SPECS, "http.path,depth=65535"])
@pytest.mark.parametrize("name", HOSTILE)
def test_the_work_is_linear_in_the_octets(spec: str, name: str) -> None:
    begun = time.process_time()

    key(spec, HOSTILE[name])

    assert time.process_time() - begun < 1  # some ms; a quadratic search would take a minute
