"""Readers: from a value of TOML to what it means, or ValueError with what would be right."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_SUN_LEN = 108  # linux/un.h: sun_path, with a zero at its end
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9._-]+\.?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_DURATIONS = re.compile(r"\d+(?:\.\d+)?|(?:\d+(?:\.\d+)?[smhd])+")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_WITH_PORT = re.compile(r"(.+):(\d+)")


@dataclass(frozen=True, slots=True)
class Reader(Generic[T]):
    """From a value of TOML to what it means.

    read:    raises ValueError, which says what would be right.
    kind:    which values there are, for the documentation.
    show:    the TOML for what `read` returns.
    numeric: whether that is a number, which a flag's text has to become.
    """

    read: Callable[[Any], T]
    kind: str
    show: Callable[[T], str]
    numeric: bool = False

    def __call__(self, value: Any) -> T:
        return self.read(value)


def quoted(value: object) -> str:
    """A text in TOML."""
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def whole(low: int, high: int, unit: str = "", show: Callable[[int], str] = str) -> Reader[int]:
    """A whole number in low..high. unit: of what, for the documentation."""
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value
    return Reader(read, f"{low} to {high} {unit}".rstrip(), show, numeric=True)


def seconds(low: float, high: float) -> Reader[int]:
    """A time in seconds, returned in ms."""
    def read(value: Any) -> int:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise ValueError(f"seconds, from {low:.12g} to {high:.12g}")
        return round(value * 1000)
    return Reader(read, f"{low:.12g} to {high:.12g} s", lambda value_ms: f"{value_ms / 1000:.12g}",
                  numeric=True)


def _read_duration(value: Any) -> int:
    """A time in seconds, or as `1h30m`, returned in ms."""
    if isinstance(value, str):
        parts = _DURATION.findall(value) if _DURATIONS.fullmatch(value) else []
        value = sum(float(number) * _UNITS[unit] for number, unit in parts) or None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 1e9:
        raise ValueError('seconds, or a time such as "90s", "5m" or "1h30m", of a second at least')
    return round(value * 1000)


duration = Reader(_read_duration, '1 to 1000000000 s, or `"1h30m"`',
                  lambda value_ms: f"{value_ms / 1000:.12g}")


def choice(*names: str) -> Reader[str]:
    """One of `names`."""
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return value
    return Reader(read, ", ".join(f"`{name}`" for name in names), quoted)


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _read_socket(value: Any) -> bool | str:
    """Whether there is a socket, or where."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.startswith("/") or len(value.encode()) >= _SUN_LEN:
        raise ValueError(f'true, false, or "/PATH" of less than {_SUN_LEN} octets')
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text in quotes")
    return value


flag = Reader(_read_flag, "`true`, `false`", lambda value: str(value).lower())
unix_socket = Reader(_read_socket, '`true`, `false`, `"/PATH"`',
                     lambda value: quoted(value) if isinstance(value, str) else str(value).lower())
text = Reader(_read_text, "text", quoted)


def ipv4(port_goes: str) -> Reader[IPv4Address]:
    """An IPv4 address that a host can have. port_goes: what to do with a port that is with it."""
    def read(value: Any) -> IPv4Address:
        with_port = _WITH_PORT.fullmatch(value) if isinstance(value, str) else None
        if with_port and ":" not in with_port[1]:
            raise ValueError(f"an address alone, such as {_example(with_port[1])}; {port_goes}")
        return _address(value)
    return Reader(read, "IPv4 address", quoted)


def _read_ipv4_port(value: Any) -> tuple[IPv4Address, int]:
    address, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon:
        raise ValueError("ADDRESS:PORT, such as 192.168.33.10:80")
    return _address(address.strip("[]")), port_number(port)


ipv4_port = Reader(_read_ipv4_port, '`"ADDRESS:PORT"`', lambda end: quoted(f"{end[0]}:{end[1]}"))


def _address(value: Any) -> IPv4Address:
    """Raises: ValueError for what is no IPv4 address, or one that no host has on a network."""
    try:
        address = ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if isinstance(address, IPv6Address):
        raise ValueError("an IPv4 address; IPv6 is not carried yet")
    if address is not None and address.is_loopback:
        raise ValueError(f"an address that other hosts can reach, which {address} is not")
    if address is None or address.is_multicast or address.is_unspecified:
        raise ValueError("the IPv4 address of a host, such as 192.168.33.10" + _why_not(value))
    return address


def _why_not(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if "/" in value:
        return "; without a prefix length"
    if _NAME.fullmatch(value):
        return f"; names are not looked up (`getent ahostsv4 {value}` does it)"
    return ""


def _example(address: str) -> str:
    try:
        return str(_address(address))
    except ValueError:
        return "192.168.33.10"


def port_number(text: str) -> int:
    """A port in text."""
    return whole(1, 65535)(int(text) if text.isdecimal() else text)


def _read_listen(value: Any) -> tuple[str, int]:
    """ADDRESS:PORT to listen on, loopback included."""
    address, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    try:
        ip_address(address)
        return address, port_number(port)
    except ValueError:
        raise ValueError("ADDRESS:PORT, such as 127.0.0.1:9101") from None


listen = Reader(_read_listen, '`"ADDRESS:PORT"`', lambda end: quoted(f"{end[0]}:{end[1]}"))
