"""As much of an HTTP/1 request as a key needs, read from a prefix of the client's stream.

Every reader takes what has arrived so far and says NEED_MORE while the answer
may still change, so the answer never depends on where segments were cut.
Searching is left to `re` and `bytes.find`, which run at C speed and once over
the octets.

Source: RFC 9112 §2.2 (empty lines, bare LF), §3 (request line), §3.2 (targets);
        RFC 9113 §3.4 (the HTTP/2 preface, which is no request).
"""

import re
from enum import Enum


class Missing(Enum):
    """Why there is no key."""

    NEED_MORE = "more octets may complete it"
    NO_KEY = "no octets to come will give it"


NEED_MORE, NO_KEY = Missing.NEED_MORE, Missing.NO_KEY

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_METHOD = re.compile(rb"(?:\r?\n){0,16}(" + _TOKEN + rb"{1,32}) ")
_METHOD_BEGUN = re.compile(rb"(?:\r?\n){0,16}(?:\r|" + _TOKEN + rb"{1,32})?")
_TARGET_END = re.compile(rb"[\x00-\x20\x7f]")
_AUTHORITY_END = re.compile(rb"[/?#]")
_PATH_END = re.compile(rb"[?#]")
_SECTION_END = re.compile(rb"\n\r?\n")
_SCHEMES = (b"http://", b"https://")


def header_pattern(name: str) -> re.Pattern[bytes]:
    """What finds the whole line of header `name`; group 1 is its value."""
    return re.compile(
        rb"\n" + re.escape(name.encode("ascii")) + rb"[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?\n",
        re.IGNORECASE,
    )


_HOST = header_pattern("host")


def target(payload: bytes) -> tuple[bytes, int] | Missing:
    """The request target so far, and the offset where it ended (-1 while it may go on)."""
    method = _METHOD.match(payload)
    if method is None:
        begun = _METHOD_BEGUN.fullmatch(payload)
        return NEED_MORE if begun else NO_KEY
    if method[1] == b"PRI":
        return NO_KEY
    start = method.end()
    end = _TARGET_END.search(payload, start)
    if end is None:
        return payload[start:], -1
    if end[0] not in b" \r\n" or end.start() == start:
        return NO_KEY
    return payload[start:end.start()], end.start()


def split_target(octets: bytes, ended: bool) -> tuple[bytes | None, bytes] | Missing:
    """(authority or None, path with query) of a target in origin or absolute form.

    The authority-form of CONNECT and the asterisk of OPTIONS have no path.
    """
    if octets[:1] == b"/":
        return None, octets
    lowered = octets[:8].lower()
    for scheme in _SCHEMES:
        if lowered.startswith(scheme):
            rest = octets[len(scheme):]
            end = _AUTHORITY_END.search(rest)
            if end is None:
                return (rest, b"/") if ended else NEED_MORE
            path = rest[end.start():]
            return rest[:end.start()], path if path[:1] == b"/" else b"/" + path
    if not ended and any(scheme.startswith(lowered) for scheme in _SCHEMES):
        return NEED_MORE
    return NO_KEY


def until_query(path: bytes, ended: bool) -> tuple[bytes, bool]:
    """The path without query and fragment, and whether it is whole."""
    end = _PATH_END.search(path)
    return (path, ended) if end is None else (path[:end.start()], True)


def query_value(path: bytes, ended: bool, name: bytes) -> bytes | Missing:
    """The raw value of the first query parameter `name`."""
    query = path.partition(b"#")[0].partition(b"?")[2]
    parameters = query.split(b"&")
    if not ended and b"#" not in path:
        parameters.pop()  # the last one may go on
    for parameter in parameters:
        found, _, value = parameter.partition(b"=")
        if found == name:
            return value
    return NO_KEY if ended or b"#" in path else NEED_MORE


def header(payload: bytes, target_end: int, pattern: re.Pattern[bytes]) -> bytes | Missing:
    """The first value of the header that `pattern` finds.

    target_end: the offset that `target` gave.
    """
    line_end = payload.find(b"\n", target_end) if target_end >= 0 else -1
    if line_end < 0:
        return NEED_MORE
    section_end = _SECTION_END.search(payload, line_end)
    limit = section_end.start() + 1 if section_end else len(payload)
    line = pattern.search(payload, line_end, limit)
    if line is not None:
        return line[1]
    return NO_KEY if section_end else NEED_MORE


def host(payload: bytes, authority: bytes | None, target_end: int) -> bytes | Missing:
    """The host in lower case without port: the target's own, else the Host header's (§3.2.2)."""
    if authority is None:
        value = header(payload, target_end, _HOST)
        if isinstance(value, Missing):
            return value
    else:
        value = authority.rpartition(b"@")[2]
    name = value[:value.find(b"]") + 1] if value[:1] == b"[" else value.partition(b":")[0]
    return name.lower() or NO_KEY


def cookie_value(cookies: bytes, name: bytes) -> bytes | Missing:
    """The value of cookie `name` in a Cookie header (RFC 6265 §4.2.1)."""
    for pair in cookies.split(b";"):
        found, equals, value = pair.strip(b" \t").partition(b"=")
        if equals and found == name:
            return value
    return NO_KEY
