"""As much of an HTTP/1 request as a key needs, read from a prefix of the client's stream.

Every reader takes what has arrived so far and says what is known of the octets
that follow (`Part.rest`), so an answer once given never changes, wherever
segments were cut. Searching is left to `re` and `bytes.find`, which run at C
speed; every pattern here takes time linear in the octets, since a client writes
them.

Source: RFC 9112 §2.2 (empty lines, bare LF), §3 (request line), §3.2 (targets), §3.3 (host);
        RFC 9113 §3.4 (the HTTP/2 preface, which is no request).
"""

import re
from enum import Enum
from typing import NamedTuple


class Missing(Enum):
    """Why there is no key."""

    NEED_MORE = "more octets may complete it"
    NO_KEY = "no octets to come will give it"


NEED_MORE, NO_KEY = Missing.NEED_MORE, Missing.NO_KEY


class Part(NamedTuple):
    """Some octets of a request as far as they have arrived.

    rest: None if they are whole; NEED_MORE if they may go on; NO_KEY if an octet that may not
          stand there cuts them off.
    """

    octets: bytes
    rest: Missing | None


class Target(NamedTuple):
    """The request target; octets and rest as a Part's.

    method: the request's. end: the offset just past the target.
    """

    octets: bytes
    rest: Missing | None
    method: bytes
    end: int


_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_START = re.compile(rb"(?:\r?\n){0,16}(" + _TOKEN + rb"{1,32}) ([^\x00-\x20\x7f]*)")
_METHOD_BEGUN = re.compile(rb"(?:\r?\n){0,16}(?:\r|" + _TOKEN + rb"{1,32})?")
_AUTHORITY_END = re.compile(rb"[/?#]")
_SECTION_END = re.compile(rb"\n\r?\n")
_SCHEMES = (b"http://", b"https://")
_VERSIONS = frozenset((b" HTTP/1.0", b" HTTP/1.0\r", b" HTTP/1.1", b" HTTP/1.1\r"))
_VERSION_LEN = 10
_BLANK = b" \t\r"


def target(payload: bytes) -> Target | Missing:
    """The target of the request that begins the stream."""
    start = _START.match(payload)
    if start is None:
        return NEED_MORE if _METHOD_BEGUN.fullmatch(payload) else NO_KEY
    method, octets = start.groups()
    if method == b"PRI":
        return NO_KEY
    end = start.end()
    if end == len(payload):
        return Target(octets, NEED_MORE, method, end)
    return Target(octets, None if octets and payload[end] in b" \r\n" else NO_KEY, method, end)


def split_target(whole: Target) -> tuple[Part | None, Part] | Missing:
    """(authority or None, path with query) of a target in origin, absolute or authority form.

    The authority form is CONNECT's, and has no path (§3.2.3); the asterisk of OPTIONS and a
    target that is none have neither.
    """
    octets, rest, method, _ = whole
    if octets[:1] == b"/":
        return None, Part(octets, rest)
    lowered = octets[:8].lower()
    for scheme in _SCHEMES:
        if lowered.startswith(scheme):
            return _split_absolute(octets[len(scheme):], rest)
    if rest is NEED_MORE and any(scheme.startswith(lowered) for scheme in _SCHEMES):
        return NEED_MORE
    if method == b"CONNECT" and not _AUTHORITY_END.search(octets):
        return Part(octets, rest), Part(b"", NO_KEY)
    return NO_KEY


def _split_absolute(octets: bytes, rest: Missing | None) -> tuple[Part, Part]:
    """As split_target, from what follows the scheme; an empty path is `/`."""
    end = _AUTHORITY_END.search(octets)
    if end is None:
        return Part(octets, rest), Part(b"/" if rest is None else b"", rest)
    path = octets[end.start():]
    return Part(octets[:end.start()], None), Part(path if path[:1] == b"/" else b"/" + path, rest)


def until_query(path: Part) -> Part:
    """The path without its query."""
    end = path.octets.find(b"?")
    return path if end < 0 else Part(path.octets[:end], None)


def query_value(path: Part, name: bytes) -> Part | Missing:
    """The raw value of the first query parameter `name` that has one."""
    query = b"&" + path.octets.partition(b"?")[2]
    sought = b"&" + name + b"="
    found = query.find(sought)
    if found < 0:
        return path.rest or NO_KEY
    start = found + len(sought)
    end = query.find(b"&", start)
    return Part(query[start:], path.rest) if end < 0 else Part(query[start:end], None)


def header(payload: bytes, whole: Target, name: bytes) -> Part | Missing:
    """The value of the first header `name`, without the blanks around it.

    whole: what `target` gave. name: in lower case.
    """
    if whole.rest is not None:
        return whole.rest
    line_end = payload.find(b"\n", whole.end, whole.end + _VERSION_LEN + 1)
    if line_end < 0:
        return NEED_MORE if len(payload) - whole.end <= _VERSION_LEN else NO_KEY
    if payload[whole.end:line_end] not in _VERSIONS:
        return NO_KEY
    section_end = _SECTION_END.search(payload, line_end)
    limit = section_end.start() + 1 if section_end else len(payload)
    sought = b"\n" + name + b":"
    found = payload[line_end:limit].lower().find(sought)
    if found < 0:
        return NO_KEY if section_end else NEED_MORE
    start = line_end + found + len(sought)
    end = payload.find(b"\n", start)
    if end < 0:
        return Part(payload[start:].strip(_BLANK), NEED_MORE)
    return Part(payload[start:end].strip(_BLANK), None)


def host(payload: bytes, whole: Target, authority: Part | None) -> Part | Missing:
    """The target URI's host (§3.3) in lower case without port.

    authority: the target's own, which counts even beside a Host header; None: it has none.
    """
    found = header(payload, whole, b"host") if authority is None else authority
    if isinstance(found, Missing):
        return found
    octets, rest = found
    if authority is not None:
        octets = octets.rpartition(b"@")[2]
    name = octets[:octets.find(b"]") + 1] if octets[:1] == b"[" else octets.partition(b":")[0]
    return Part(name.lower(), rest) if name else rest or NO_KEY


def cookie_value(payload: bytes, whole: Target, name: bytes) -> Part | Missing:
    """The value of the first cookie `name` in the first Cookie header (RFC 6265 §4.2.1)."""
    cookies = header(payload, whole, b"cookie")
    if isinstance(cookies, Missing):
        return cookies
    pairs = cookies.octets.split(b";")
    last = len(pairs) - 1
    for index, pair in enumerate(pairs):
        found, equals, value = pair.strip(_BLANK).partition(b"=")
        if equals and found == name:
            return Part(value, cookies.rest if index == last else None)
    return cookies.rest or NO_KEY
