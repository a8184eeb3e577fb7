"""Reading configuration strictly: every value has a type and a range, every error a remedy."""

import difflib
import os
import socket
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar

from common.cluster.secrets import Secrets, load_secrets

T = TypeVar("T")
COMMAND_LINE = "command line"
_SHOWN_LEN = 200


class ConfigError(Exception):
    """A value that cannot be used: where it stands, what it is, and what would be right.

    As text it is one line, whatever the value is.
    """

    def __init__(self, file: str, key: str, value: object, expected: str) -> None:
        shown = repr(value)
        if len(shown) > _SHOWN_LEN:
            shown = shown[:_SHOWN_LEN] + "…"
        super().__init__(" ".join(f"{file}: {key} = {shown}: expected {expected}".split()))
        self.file, self.key, self.value, self.expected = file, key, value, expected


class Table:
    """A TOML table (or the flags of a command line) that is read key by key.

    file:   names the source in errors. prefix: where the table stands, e.g. `service[0].`.
    """

    def __init__(self, file: str, values: dict[str, Any], prefix: str = "") -> None:
        self.file = file
        self.prefix = prefix
        self._values = values
        self._known: list[str] = []

    def error(self, key: str, value: object, expected: str) -> ConfigError:
        """The error for one key of this table."""
        return ConfigError(self.file, self.prefix + key, value, expected)

    def take(self, key: str, read: Callable[[Any], T], default: T) -> T:
        """The value of `key` as `read` returns it.

        read: raises ValueError, which says what it expects.
        """
        self._known.append(key)
        if key not in self._values:
            return default
        value = self._values[key]
        try:
            return read(value)
        except ValueError as wrong:
            raise self.error(key, value, str(wrong)) from None

    def require(self, key: str, read: Callable[[Any], T]) -> T:
        """As `take`, for a key that must be there."""
        if key not in self._values:
            raise self.error(key, None, "a value: this key is required")
        return self.take(key, read, None)  # type: ignore[return-value]  # it is there

    def tables(self, key: str) -> list["Table"]:
        """The array of tables `[[key]]`."""
        self._known.append(key)
        values = self._values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.error(key, values, f"tables, written [[{self.prefix}{key}]]")
        return [
            Table(self.file, value, f"{self.prefix}{key}[{index}].")
            for index, value in enumerate(values)
        ]

    def table(self, key: str) -> "Table":
        """The table `[key]`, empty where there is none."""
        self._known.append(key)
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, value, f"a table, written [{self.prefix}{key}]")
        return Table(self.file, value, f"{self.prefix}{key}.")

    def finish(self) -> None:
        """Refuse keys that nothing asked for."""
        for key, value in self._values.items():
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, 1)
                known = f"did you mean `{close[0]}`?" if close else ", ".join(sorted(self._known))
                raise self.error(key, value, f"a key that there is: {known}")


def load_toml(path: Path) -> Table:
    """The file's top table. Raises: ConfigError."""
    try:
        with path.open("rb") as file:
            return Table(str(path), tomllib.load(file))
    except OSError as error:
        raise ConfigError(str(path), "file", str(path), f"a readable file ({error.strerror})") \
            from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "file", str(path), f"valid TOML ({error})") from None


# --- readers: from a value to what it means, or ValueError with what would be right ---


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A whole number in low..high."""
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value
    return read


def seconds(low: float, high: float) -> Callable[[Any], int]:
    """A time in seconds, returned in ms."""
    def read(value: Any) -> int:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise ValueError(f"seconds, from {low:g} to {high:g}")
        return round(value * 1000)
    return read


def flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    """A string with something in it."""
    if not isinstance(value, str) or not value:
        raise ValueError("a text in quotes")
    return value


def choice(*names: str) -> Callable[[Any], str]:
    """One of `names`."""
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return value
    return read


def ipv4(value: Any) -> IPv4Address:
    """An IPv4 address that a host can have."""
    try:
        address = ip_address(value) if isinstance(value, str) else None
    except ValueError:
        address = None
    if isinstance(address, IPv6Address):
        raise ValueError("an IPv4 address; IPv6 is not carried yet")
    if address is None or address.is_multicast or address.is_unspecified or address.is_loopback:
        raise ValueError("the IPv4 address of a host, such as 192.168.33.10")
    return address


def port_number(text: str) -> int:
    """A port in text."""
    return whole(1, 65535)(int(text) if text.isdecimal() else text)


def ipv4_port(value: Any) -> tuple[IPv4Address, int]:
    """ADDRESS:PORT."""
    address, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon:
        raise ValueError("ADDRESS:PORT, such as 192.168.33.10:80")
    return ipv4(address.strip("[]")), port_number(port)


def listen(value: Any) -> tuple[str, int]:
    """ADDRESS:PORT to listen on, loopback included."""
    address, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    try:
        ip_address(address)
        return address, port_number(port)
    except ValueError:
        raise ValueError("ADDRESS:PORT, such as 127.0.0.1:9101") from None


def log_level(value: Any) -> str:
    """A level of the log."""
    return choice("debug", "info", "warning", "error")(value)


# --- what can only be seen on the host; nothing is changed ---


def check_secret(file: str, path: str) -> Secrets:
    """Read the secret file. Raises: ConfigError, with the remedy."""
    try:
        return load_secrets(path)
    except PermissionError as error:
        remedy = f"a file that its owner alone may read ({error}): chmod 600 {path}"
        raise ConfigError(file, "secret_file", path, remedy) from None
    except OSError as error:
        remedy = f"the cluster's secret ({error.strerror}): make one with `balancer keygen {path}`"
        raise ConfigError(file, "secret_file", path, remedy) from None
    except ValueError as error:
        remedy = f"one or two lines of 32 hex digits ({error}): see `balancer keygen`"
        raise ConfigError(file, "secret_file", path, remedy) from None


def check_interface(file: str, interface: str) -> None:
    """Raises: ConfigError, naming the interfaces that there are."""
    names = sorted(name for _, name in socket.if_nameindex())
    if interface not in names:
        expected = f"an interface of this host: {', '.join(names)}"
        raise ConfigError(file, "interface", interface, expected)


def check_rights(program: str) -> None:
    """Raises: ConfigError unless the process may change the network."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    net_admin, net_raw = 1 << 12, 1 << 13
    if not effective & net_admin or not effective & net_raw:
        raise ConfigError(
            program, "user", os.geteuid(),
            f"root, or the capabilities NET_ADMIN and NET_RAW: sudo {program}",
        )
