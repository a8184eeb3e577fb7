"""The key that is hashed to choose a backend, taken from the client's first octets.

`choose_key` is the whole of it: what the service asks for, else its fallback,
else the client's address. It answers NEED_MORE only while more octets may
complete the key, and never fails.

Twin: balancer/offload/bpf/request.h
"""

import re
import struct
from dataclasses import dataclass

from balancer.keys import http, tls
from balancer.keys.http import NEED_MORE, NO_KEY, Missing, Part

_PLAIN = ("http.path", "http.target", "http.host+path", "http.host", "tls.sni", "source",
          "source+port")
_NAMED = ("http.header", "http.cookie", "http.query")
_WITH_PATH = ("http.path", "http.target", "http.host+path")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NUMBER = re.compile(r"[0-9]{1,5}")
_MAX_NUMBER = 65535
FORMS = (*_PLAIN, *(f"{kind}:NAME" for kind in _NAMED), "payload:N")


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

    @classmethod
    def parse(cls, text: str) -> "KeySpec":
        """Read `http.path,depth=2,len=32` and the like.

        Raises: ValueError, which says what would be right.
        """
        form, *modifiers = text.split(",")
        kind, colon, argument = form.partition(":")
        depth, max_len = _parse_modifiers(kind, modifiers)
        if kind in _PLAIN and not colon:
            return cls(kind, depth=depth, max_len=max_len)
        if kind in _NAMED and _NAME.fullmatch(argument):
            return cls(kind, name=argument)
        if kind == "payload" and _is_number(argument):
            return cls(kind, length=int(argument))
        raise ValueError(f"one of {', '.join(FORMS)} (N: 1 to {_MAX_NUMBER})")

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


def _parse_modifiers(kind: str, modifiers: list[str]) -> tuple[int, int]:
    """The depth and the length that they set, 0 where they do not."""
    bounds: dict[str, int] = {}
    for modifier in modifiers:
        name, _, value = modifier.partition("=")
        if name not in ("depth", "len") or name in bounds or not _is_number(value):
            raise ValueError(f"modifiers depth=N and len=N, once each, with N from 1 to "
                             f"{_MAX_NUMBER}, not {modifier!r}")
        if kind not in _WITH_PATH:
            raise ValueError(f"depth and len with {', '.join(_WITH_PATH)} only")
        bounds[name] = int(value)
    return bounds.get("depth", 0), bounds.get("len", 0)


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and 1 <= int(text) <= _MAX_NUMBER


def choose_key(
    spec: KeySpec, fallback: KeySpec, payload: bytes | bytearray, source: bytes, sport: int,
    complete: bool,
) -> bytes | Missing:
    """The key for a stream that begins with `payload`; NEED_MORE only if not `complete`.

    source: the client's address, 4 octets. sport: its port.
    complete: no more octets will come (a bound was reached, or a FIN): take what is there.
    """
    for wanted in (spec, fallback):
        key = extract(wanted, payload, source, sport, complete)
        if key is not NO_KEY:
            return key
    return source


def extract(
    spec: KeySpec, payload: bytes | bytearray, source: bytes, sport: int, complete: bool
) -> bytes | Missing:
    """The key that `spec` names, never empty; NEED_MORE only if not `complete`; or NO_KEY.

    If `complete`, a key that has begun counts as far as it has arrived.
    """
    kind = spec.kind
    if kind == "source":
        return source
    if kind == "source+port":
        return source + struct.pack("!H", sport)
    found = _find(spec, bytes(payload))
    if isinstance(found, Missing):
        return NO_KEY if complete else found
    octets, rest = found
    if rest is NEED_MORE and not complete:
        return NEED_MORE
    return NO_KEY if rest is NO_KEY or not octets else octets


def _find(spec: KeySpec, payload: bytes) -> Part | Missing:
    """What there is in `payload` of the key that `spec` names."""
    kind = spec.kind
    if kind == "payload":
        return Part(payload[:spec.length], None if len(payload) >= spec.length else NEED_MORE)
    if kind == "tls.sni":
        return tls.server_name(payload)
    target = http.target(payload)
    if isinstance(target, Missing):
        return target
    if kind == "http.header":
        return http.header(payload, target, spec.name.lower().encode())
    if kind == "http.cookie":
        return http.cookie_value(payload, target, spec.name.encode())
    split = http.split_target(target)
    if isinstance(split, Missing):
        if kind == "http.host" and split is NO_KEY:  # OPTIONS * has a Host as well
            return http.host(payload, target, None)
        return split
    authority, path = split
    if kind == "http.host":
        return http.host(payload, target, authority)
    if kind == "http.query":
        return http.query_value(path, spec.name.encode())
    path = _clip(spec, path if kind == "http.target" else http.until_query(path))
    if kind == "http.host+path":
        return _join(http.host(payload, target, authority), path)
    return path


def _join(host: Part | Missing, path: Part) -> Part | Missing:
    if isinstance(host, Missing):
        return host
    rests = (host.rest, path.rest)
    rest = NO_KEY if NO_KEY in rests else NEED_MORE if NEED_MORE in rests else None
    return Part(host.octets + path.octets, rest)


def _clip(spec: KeySpec, path: Part) -> Part:
    """`path` up to the spec's depth and length, beyond which octets cannot change it.

    Every slash counts as a level, the first one too: depth N ends before slash N + 1.
    """
    octets, rest = path
    if spec.max_len and len(octets) >= spec.max_len:
        octets, rest = octets[:spec.max_len], None
    if spec.depth:
        off = -1
        for _ in range(spec.depth + 1):
            off = octets.find(b"/", off + 1)
            if off < 0:
                return Part(octets, rest)
        return Part(octets[:off], None)
    return Part(octets, rest)
