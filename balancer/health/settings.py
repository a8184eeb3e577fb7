"""How a service's backends are checked: `[service.check]`."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from common.settings.readers import Reader, choice, quoted, seconds, text, whole
from common.settings.schema import Draft, Setting

KINDS = ("http", "tls", "payload", "none")
MOST_OCTETS = 1000  # of what is sent: one segment, on any path that has an MSS of 1200
_OF_KIND = {"http": ("method", "path", "host", "status"), "tls": ("name",), "payload": ("send",)}
_EXPECT = ("http", "payload")
_STATUS = re.compile(r"([1-5]\d\d)(?:-([1-5]\d\d))?")
_PATH = re.compile(r"/[!-~]{0,511}")
_HOST = re.compile(r"[!-~]{1,255}")


def _read_status(value: Any) -> tuple[int, int]:
    found = _STATUS.fullmatch(str(value)) if isinstance(value, (int, str)) else None
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if low > high:
        raise ValueError('a status or a range of them, such as 200 or "200-399"')
    return low, high


def _matching(pattern: re.Pattern[str], expected: str, kind: str) -> Reader[str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(expected)
        return value
    return Reader(read, kind, quoted)


status_range = Reader(_read_status, '`200` or `"200-399"`',
                      lambda low_high: quoted("-".join(map(str, low_high))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What is sent to a backend, what it has to answer, and what follows if it does not."""

    kind: Annotated[str, Setting(
        choice(*KINDS), "what a check is",
        "`http`: a request, whose status is looked at; `tls`: a ClientHello, which a ServerHello "
        "has to answer; `payload`: `send`, which `expect` has to answer.",
        default="by `key`; without this table `none`",
    )] = "none"
    method: Annotated[str, Setting(
        choice("GET", "HEAD", "OPTIONS"), "`http`: the request's method")] = "GET"
    path: Annotated[str, Setting(
        _matching(_PATH, "a path that begins with /, without spaces", "path"),
        "`http`: what is asked for")] = "/"
    host: Annotated[str, Setting(
        _matching(_HOST, "a host's name, without spaces", "name"),
        "`http`: the `Host` header", default="the VIP")] = ""
    status: Annotated[tuple[int, int], Setting(
        status_range, "`http`: which status is right")] = (200, 399)
    name: Annotated[str, Setting(
        _matching(_HOST, "a server's name, without spaces", "name"),
        "`tls`: the server name that is asked for", default="none")] = ""
    send: Annotated[str, Setting(text, "`payload`: what is sent", default="none")] = ""
    expect: Annotated[str, Setting(
        text, "`http`, `payload`: words that the answer has to contain",
        "They are looked for in its first 16 KiB.", default="none")] = ""
    interval_ms: Annotated[int, Setting(
        seconds(0.1, 3600), "time from one check to the next",
        "It varies a little. While results differ from the state, it is half as long.")] = 2000
    timeout_ms: Annotated[int, Setting(
        seconds(0.05, 60), "how long a backend may take to answer",
        "At most `interval`.")] = 1000
    rise: Annotated[int, Setting(
        whole(1, 100), "so many checks in a row that are passed bring a backend up",
        "After every further fall within ten minutes it takes twice as many, up to 16 times.")] = 2
    fall: Annotated[int, Setting(
        whole(1, 100), "so many checks in a row that fail bring a backend down",
        "After a start the first one decides.")] = 3
    ramp_ms: Annotated[int, Setting(
        seconds(0, 3600), "how long the share of a backend that comes up takes to become whole",
        )] = 0
    on_down: Annotated[str, Setting(
        choice("keep", "reset"), "what becomes of the open flows of a backend that is down",
        "They stay with it, or their clients are reset at their next packet.")] = "keep"
    all_down: Annotated[str, Setting(
        choice("use all", "reset"), "what becomes of new flows while all backends are down",
        "All are used as if they were up, or the clients are reset.")] = "use all"


NO_CHECK = Check()


def complete(service: Draft[Any]) -> None:
    """Choose the kind by the service's key, and refuse what does not fit it."""
    check: Draft[Check] = service.values["check"]
    if "check" not in service.table:
        return
    if "kind" not in check.origins and "kind" not in check.table.faulty:
        key = service.get("key")
        protocol = key.kind.partition(".")[0] if key else "none"
        check.values["kind"] = protocol if protocol in KINDS else "none"
    kind = check.get("kind")
    if kind is None:
        return
    own = (*_OF_KIND.get(kind, ()), *(("expect",) if kind in _EXPECT else ()))
    for name in ("method", "path", "host", "status", "name", "send", "expect"):
        if name in check.origins and name not in own:
            check.refuse(name, f"none with kind {kind}")
    if kind == "payload":
        for name in ("send", "expect"):
            if name not in check.origins and name not in check.table.faulty:
                check.refuse(name, "a text in quotes: kind payload needs it")
        if len((check.get("send") or "").encode()) > MOST_OCTETS:
            check.refuse("send", f"{MOST_OCTETS} octets at most, which fit one segment")
    interval_ms, timeout_ms = check.get("interval_ms"), check.get("timeout_ms")
    if interval_ms and timeout_ms and timeout_ms > interval_ms:
        check.refuse("timeout_ms", f"interval ({interval_ms / 1000:g} s) at most",
                     timeout_ms / 1000)
