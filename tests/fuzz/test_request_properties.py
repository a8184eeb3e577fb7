"""Properties of the keys: nothing raises, no split matters, and other parsers agree."""

import io
from http.client import parse_headers
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from hypothesis import example, given, settings
from hypothesis import strategies as st

from balancer.keys.request import FORMS, NEED_MORE, NO_KEY, KeySpec, choose_key, extract

SOURCE, SPORT = b"\xc0\x00\x02\x07", 4660
SPECS = [KeySpec.parse(form.replace("NAME", "a").replace(":N", ":7")) for form in FORMS]
SPECS += [KeySpec.parse("http.path,depth=1,len=9"), KeySpec.parse("http.host+path,depth=2"),
          KeySpec.parse("http.target,len=3")]
TOKEN = "abcXYZ019-_"

# Pieces that matter to a parser, in any order, beside any octets.
PIECES = st.sampled_from([
    b"GET ", b"PRI ", b"CONNECT ", b"h:1", b"/", b"?", b"a=", b"&", b"#", b"*", b"http://",
    b"HTTPS://", b"[::1]", b"@", b":80", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r", b" ",
    b"\t", b"Host:", b"a: b", b"Cookie: a=", b"; ", b"\0", b"\x7f", b"\xff",
    b"\x16\x03\x01\0\x05", b"\x01\0\0\x40", bytes(34), b"\0\0\0\x08\0\x06\0\0\x03abc",
])
OCTETS = st.lists(PIECES | st.binary(max_size=6), max_size=24).map(b"".join)
STREAMS = OCTETS | OCTETS.map(b"GET /".__add__) | OCTETS.map(b"CONNECT ".__add__) \
    | OCTETS.map(b"GET /a HTTP/1.1\r\n".__add__) \
    | OCTETS.map(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".__add__)


def key(spec: KeySpec, payload: bytes, complete: bool = False) -> object:
    return extract(spec, payload, SOURCE, SPORT, complete)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SPECS), STREAMS)
@example(KeySpec("http.path"), b"GET /a?\x01")
@example(KeySpec("http.host"), b"CONNECT a:1/ HTTP/1.1\nHost: h\n")
@example(KeySpec("tls.sni"), b"\x16\x03\x01\x00\x01\x01\x17")
def test_no_split_changes_an_answer(spec: KeySpec, payload: bytes) -> None:
    whole = key(spec, payload)
    for end in range(len(payload)):
        assert key(spec, payload[:end]) in (whole, NEED_MORE)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SPECS), STREAMS)
def test_an_answer_is_a_key_that_is_not_empty(spec: KeySpec, payload: bytes) -> None:
    now, at_last = key(spec, payload), key(spec, payload, complete=True)

    assert now in (NEED_MORE, NO_KEY) or (isinstance(now, bytes) and now)
    assert at_last is NO_KEY or (isinstance(at_last, bytes) and at_last)
    assert at_last == now or now is NEED_MORE


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SPECS), st.sampled_from(SPECS), STREAMS)
def test_there_is_always_a_key_in_the_end(
    spec: KeySpec, fallback: KeySpec, payload: bytes
) -> None:
    assert isinstance(choose_key(spec, fallback, payload, SOURCE, SPORT, True), bytes)


@given(st.text(max_size=40) | st.lists(
    st.sampled_from([*FORMS, ",", "=", ":", "depth", "len", "1", "0", "x"]), max_size=8
).map("".join))
def test_a_spec_is_refused_or_reads_as_it_is_written(text: str) -> None:
    try:
        spec = KeySpec.parse(text)
    except ValueError:
        return

    assert KeySpec.parse(str(spec)) == spec


# --- valid requests, against Python's own parsers ---

NAMES = st.text(TOKEN, min_size=1, max_size=8)
VALUES = st.text(TOKEN + " ,;=/", min_size=1, max_size=12).map(str.strip)
PATHS = st.text(TOKEN + "/%.~", max_size=20).map("/".__add__).filter(
    lambda path: not path.startswith("//"))  # urlsplit takes what follows // for a host
QUERIES = st.none() | st.lists(st.tuples(NAMES, st.text(TOKEN, max_size=5)), max_size=4).map(
    lambda pairs: "&".join("=".join(pair) for pair in pairs))
AUTHORITIES = st.tuples(
    st.sampled_from(["h", "WWW.example.COM", "192.0.2.1", "[2001:DB8::1]"]),
    st.sampled_from(["", ":80", ":8443"]),
).map("".join)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A target and a whole request with it."""
    query = draw(QUERIES)
    target = draw(PATHS) + ("" if query is None else f"?{query}")
    if draw(st.booleans()):
        target = f"http://{draw(AUTHORITIES)}{target}"
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    fields.insert(draw(st.integers(0, len(fields))), ("hOST", draw(AUTHORITIES)))
    end = draw(st.sampled_from(["\r\n", "\n"]))
    blank = draw(st.sampled_from(["", " ", " \t "]))
    lines = [f"{draw(NAMES)} {target} HTTP/1.{draw(st.integers(0, 1))}",
             *(f"{name}:{blank}{value}{blank}" for name, value in fields), "", "body: b\n\n"]
    return target, end.join(lines).encode()


def or_no_key(text: str | None) -> object:
    return text.encode() if text else NO_KEY


@settings(max_examples=300, deadline=None)
@given(requests(), NAMES)
def test_valid_requests_read_as_pythons_parsers_read_them(
    request: tuple[str, bytes], name: str
) -> None:
    target, payload = request
    stream = io.BytesIO(payload)
    stream.readline()
    headers = {}
    for found, text in parse_headers(stream).items():
        headers.setdefault(found.lower(), text.strip(" \t"))  # the first of a name counts
    url = urlsplit(target)
    host = (url if url.netloc else urlsplit(f"//{headers['host']}")).hostname
    bracketed = f"[{host}]" if ":" in (host or "") else host
    whole = url.path + ("?" + target.partition("?")[2] if "?" in target else "")
    pairs = (pair.partition("=") for pair in url.query.split("&"))
    value = next((value for found, equals, value in pairs if found == name and equals), None)

    assert key(KeySpec("http.path"), payload) == url.path.encode()
    assert key(KeySpec("http.target"), payload) == whole.encode()
    assert key(KeySpec("http.host"), payload) == or_no_key(bracketed)
    assert key(KeySpec("http.query", name=name), payload) == or_no_key(value)
    assert key(KeySpec("http.header", name=name), payload) == or_no_key(headers.get(name.lower()))


@given(AUTHORITIES, NAMES)
def test_the_host_of_a_connect_is_the_targets_as_pythons_parser_reads_it(
    authority: str, other: str
) -> None:
    host = urlsplit(f"//{authority}").hostname or ""
    expected = f"[{host}]" if ":" in host else host

    for fields in ("", f"Host: {other}\r\n"):
        payload = f"CONNECT {authority} HTTP/1.1\r\n{fields}\r\n".encode()
        assert key(KeySpec("http.host"), payload) == expected.encode()
        assert key(KeySpec("http.path"), payload) is NO_KEY
        assert key(KeySpec("http.host+path"), payload) is NO_KEY


@given(st.dictionaries(NAMES, st.text(TOKEN, min_size=1, max_size=5), min_size=1), NAMES)
def test_cookies_read_as_pythons_parser_reads_them(cookies: dict[str, str], name: str) -> None:
    line = "; ".join("=".join(pair) for pair in cookies.items())
    payload = f"GET / HTTP/1.1\r\nCookie: {line}\r\n\r\n".encode()
    parsed = SimpleCookie(line)

    for sought in (*cookies, name):
        expected = parsed[sought].value.encode() if sought in parsed else NO_KEY
        assert key(KeySpec("http.cookie", name=sought), payload) == expected
