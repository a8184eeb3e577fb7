"""The bridge's configuration: what it is, and how it is read from TOML or flags."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from common import settings
from common.encap import dscp
from common.settings import COMMAND_LINE, ConfigError, Table
from common.settings.flags import Flags, number, service_tables, top_table
from common.wire.options import WSCALE_MAX

DEFAULT_FILE = Path("/etc/l3dsr/packetbridge.toml")
DEFAULT_SECRET = "/etc/l3dsr/secret"
DEFAULT_QUEUE = 34
DEFAULT_VIP = "3=192.168.33.10:80"
DEFAULT_SERVER = "192.168.33.30:80"


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP and port, the DSCP that names it, and the server behind it.

    wscale: the shift that the balancer's SYN-ACK offers.
    """

    name: str
    dscp: int
    vip: IPv4Address
    port: int
    server: IPv4Address
    server_port: int
    wscale: int = 7


@dataclass(frozen=True, slots=True)
class Timeouts:
    """After how long without a packet a flow leaves the table; replay: a server is given up."""

    idle_ms: int = 900_000
    closing_ms: int = 10_000
    reset_ms: int = 10_000
    replay_ms: int = 15_000


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. address: the bridge's own, None for the interface's first.

    mark: of packets to the server and, inherited, of its answers; mark + 1: of packets to clients.
    """

    services: tuple[Service, ...]
    interface: str = "eth1"
    address: IPv4Address | None = None
    secret_file: str = DEFAULT_SECRET
    mode: str = "auto"
    engine: str = "auto"
    max_flows: int = 1_000_000
    queue: int = DEFAULT_QUEUE
    mark: int = 0x332
    metrics: tuple[str, int] | None = None
    log_level: str = "info"
    log_format: str = "text"
    timeouts: Timeouts = field(default_factory=Timeouts)
    file: str = COMMAND_LINE


SERVICE_FLAGS = ("vip", "server")


def load(named: str | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a file, of flags, or of the lab where neither says anything.

    named: the file that the command line names; None takes DEFAULT_FILE where it exists.
    flags: those that were given, by key; they count before the file's globals.
    Raises: ConfigError.
    """
    return read(top_table(named, DEFAULT_FILE), flags)


def read(table: Table, flags: Mapping[str, Any] | None = None) -> Config:
    """As `load`, from the top table of a file. Raises: ConfigError."""
    given = dict(flags or {})
    service_flags = {key: given.pop(key) for key in SERVICE_FLAGS if key in given}
    overriding = Flags(given)
    values = _read_globals(table) | _read_globals(overriding)
    overriding.finish()
    _check_mode(overriding if "mode" in given else table, values)
    timeouts = _read_timeouts(table.table("timeouts"))
    tables = service_tables(table, service_flags, _describe)
    services = tuple(_read_service(service) for service in tables)
    _check_services(services, tables)
    return Config(services=services, timeouts=timeouts, file=table.file, **values)


def _describe(flags: dict[str, Any]) -> Iterator[Table]:
    """The services that flags describe: each `--vip`, all with the one server."""
    for text in flags.get("vip", [DEFAULT_VIP]):
        codepoint, equals, vip = text.partition("=")
        if not equals:
            raise ConfigError(
                COMMAND_LINE, "--vip", text, f"DSCP=ADDRESS:PORT, such as {DEFAULT_VIP}"
            )
        service = {
            "dscp": number(codepoint), "vip": vip, "server": flags.get("server", DEFAULT_SERVER)
        }
        yield Flags(service, {"dscp": "--vip"})


def _read_globals(table: Table) -> dict[str, Any]:
    """The keys that stand at the top of a file and are flags as well."""
    whole = settings.whole
    readers = {
        "interface": settings.text,
        "address": settings.ipv4,
        "secret_file": settings.text,
        "mode": settings.choice("auto", "splice", "adopt"),
        "engine": settings.choice("auto", "portable", "fast"),
        "max_flows": whole(1, 100_000_000),
        "queue": whole(0, 65535),
        "mark": whole(1, 0xFFFFFFFE),
        "metrics": settings.listen,
        "log_level": settings.log_level,
        "log_format": settings.choice("text", "json"),
    }
    values = {key: table.take(key, reader, None) for key, reader in readers.items()}
    return {key: value for key, value in values.items() if value is not None}


def _check_mode(table: Table, values: dict[str, Any]) -> None:
    if (values.get("mode"), values.get("engine")) == ("adopt", "portable"):
        raise table.error("mode", "adopt", "auto or splice, or another engine than portable: "
                                           "connections are adopted by the fast one")


def _read_timeouts(table: Table) -> Timeouts:
    default = Timeouts()
    timeouts = Timeouts(
        idle_ms=table.take("idle", settings.seconds(1, 1e6), default.idle_ms),
        closing_ms=table.take("closing", settings.seconds(1, 1e6), default.closing_ms),
        reset_ms=table.take("reset", settings.seconds(1, 1e6), default.reset_ms),
        replay_ms=table.take("replay", settings.seconds(1, 600), default.replay_ms),
    )
    table.finish()
    return timeouts


def _read_service(table: Table) -> Service:
    vip, port = table.require("vip", settings.ipv4_port)
    server, server_port = table.require("server", settings.ipv4_port)
    service = Service(
        name=table.take("name", settings.text, f"{vip}:{port}"),
        dscp=table.take("dscp", settings.whole(1, dscp.MAX), dscp.DEFAULT),
        vip=vip,
        port=port,
        server=server,
        server_port=server_port,
        wscale=table.take("wscale", settings.whole(0, WSCALE_MAX), 7),
    )
    table.finish()
    return service


def _check_services(services: tuple[Service, ...], tables: list[Table]) -> None:
    """One DSCP and one name for each VIP and port."""
    seen: set[tuple[str, object]] = set()
    for service, table in zip(services, tables, strict=True):
        for key, value in (("vip", f"{service.vip}:{service.port}"), ("dscp", service.dscp),
                           ("name", service.name)):
            if (key, value) in seen:
                raise table.error(key, value, f"a {_ONE_EACH[key]} that no other service has")
            seen.add((key, value))


_ONE_EACH = {"vip": "VIP and port", "dscp": "DSCP", "name": "name"}
