"""The key that is hashed to choose a backend, taken from the client's first octets.

`choose_key` is the whole of it: what the service asks for, else its fallback,
else the client's address. It answers NEED_MORE only while more octets may
complete the key, and never fails.

Twin: balancer/bpf/request.h
"""

import re
import struct
from dataclasses import dataclass, field

from balancer import http, tls
from balancer.http import NEED_MORE, NO_KEY, Missing

_PLAIN = ("http.path", "http.target", "http.host+path", "http.host", "tls.sni", "source",
          "source+port")
_NAMED = ("http.header", "http.cookie", "http.query")
_WITH_PATH = ("http.path", "http.target", "http.host+path")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FORMS = (*_PLAIN, *(f"{kind}:NAME" for kind in _NAMED), "payload:N")

_COOKIE = http.header_pattern("cookie")


@dataclass(frozen=True, slots=True)
class KeySpec:
    """Which octets are the key.

    kind:   one of FORMS without its argument.
    name:   of a header, cookie or query parameter. length: of `payload:N`, in octets.
    depth:  directory levels of a path, 0 for all. max_len: octets of a path, 0 for all.
            Both as HAProxy's `balance uri depth <depth> len <len>`.
    """

    kind: str
    name: str = ""
    length: int = 0
    depth: int = 0
    max_len: int = 0
    pattern: re.Pattern[bytes] = field(default=_COOKIE, compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> "KeySpec":
        """Read `http.path,depth=2,len=32` and the like.

        Raises: ValueError, naming what is wrong and what would be right.
        """
        form, *modifiers = text.split(",")
        kind, colon, argument = form.partition(":")
        bounds = _parse_modifiers(kind, modifiers)
        if kind in _PLAIN and not colon:
            return cls(kind, **bounds)
        if kind in _NAMED and _NAME.fullmatch(argument):
            return cls(kind, name=argument, pattern=http.header_pattern(argument))
        if kind == "payload" and argument.isdecimal() and 1 <= int(argument) <= 65535:
            return cls(kind, length=int(argument))
        raise ValueError(f"one of {', '.join(FORMS)} (N: 1 to 65535)")

    def __str__(self) -> str:
        text = self.kind
        if self.name:
            text += f":{self.name}"
        if self.length:
            text += f":{self.length}"
        if self.depth:
            text += f",depth={self.depth}"
        if self.max_len:
            text += f",len={self.max_len}"
        return text


def _parse_modifiers(kind: str, modifiers: list[str]) -> dict[str, int]:
    fields = {"depth": "depth", "len": "max_len"}
    bounds: dict[str, int] = {}
    for modifier in modifiers:
        name, _, value = modifier.partition("=")
        if name not in fields or not value.isdecimal() or not 1 <= int(value) <= 65535:
            raise ValueError("modifiers depth=N and len=N, with N from 1 to 65535")
        if kind not in _WITH_PATH:
            raise ValueError(f"depth and len with {', '.join(_WITH_PATH)} only")
        bounds[fields[name]] = int(value)
    return bounds


def choose_key(
    spec: KeySpec, fallback: KeySpec, payload: bytes, source: bytes, sport: int, complete: bool
) -> bytes | Missing:
    """The key for a stream that begins with `payload`; NEED_MORE only if not `complete`.

    source: the client's address. sport: its port.
    complete: no more octets will come (a bound was reached, or a FIN): take what is there.
    """
    for wanted in (spec, fallback):
        key = extract(wanted, payload, source, sport, complete)
        if key is NEED_MORE and complete:
            continue
        if key is not NO_KEY:
            return key
    return source


def extract(
    spec: KeySpec, payload: bytes, source: bytes, sport: int, complete: bool
) -> bytes | Missing:
    """The key that `spec` names, NEED_MORE, or NO_KEY."""
    kind = spec.kind
    if kind == "source":
        return source
    if kind == "source+port":
        return source + struct.pack("!H", sport)
    if kind == "payload":
        if len(payload) >= spec.length or complete:
            return payload[:spec.length] or NO_KEY
        return NEED_MORE
    if kind == "tls.sni":
        return tls.server_name(payload)
    return _extract_http(spec, payload, complete)


def _extract_http(spec: KeySpec, payload: bytes, complete: bool) -> bytes | Missing:
    target = http.target(payload)
    if isinstance(target, Missing):
        return target
    octets, target_end = target
    ended = target_end >= 0
    kind = spec.kind
    if kind == "http.header":
        return http.header(payload, target_end, spec.pattern)
    if kind == "http.cookie":
        cookies = http.header(payload, target_end, _COOKIE)
        if isinstance(cookies, Missing):
            return cookies
        return http.cookie_value(cookies, spec.name.encode())
    split = http.split_target(octets, ended)
    if kind == "http.host" and split is NO_KEY:
        split = None, b""  # CONNECT and OPTIONS * have a Host header too
    if isinstance(split, Missing):
        return split
    authority, path = split
    if kind == "http.query":
        return http.query_value(path, ended, spec.name.encode())
    if kind == "http.host":
        return http.host(payload, authority, target_end)
    return _extract_path(spec, payload, authority, path, target_end, complete)


def _extract_path(
    spec: KeySpec, payload: bytes, authority: bytes | None, path: bytes, target_end: int,
    complete: bool,
) -> bytes | Missing:
    whole = target_end >= 0
    if spec.kind != "http.target":
        path, whole = http.until_query(path, whole)
    path, whole = _clip(spec, path, whole)
    if spec.kind != "http.host+path":
        return path if whole or complete else NEED_MORE
    if not whole and not complete:
        return NEED_MORE
    host = http.host(payload, authority, target_end)
    return host if isinstance(host, Missing) else host + path


def _clip(spec: KeySpec, path: bytes, whole: bool) -> tuple[bytes, bool]:
    """`path` up to the spec's depth and length, and whether more octets cannot change it."""
    if spec.max_len and len(path) >= spec.max_len:
        path, whole = path[:spec.max_len], True
    if spec.depth:
        off = -1
        for _ in range(spec.depth + 1):
            off = path.find(b"/", off + 1)
            if off < 0:
                return path, whole
        return path[:off], True
    return path, whole
