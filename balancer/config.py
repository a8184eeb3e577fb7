"""The balancer's configuration: what it is, and how it is read from TOML or flags."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from balancer.keys.request import KeySpec
from balancer.pool.schedulers import HASHING, SCHEDULERS
from common import settings
from common.encap import dscp
from common.settings import COMMAND_LINE, ConfigError, Table
from common.settings.flags import Flags, number, service_tables, top_table
from common.wire.options import WSCALE_MAX

DEFAULT_FILE = Path("/etc/l3dsr/balancer.toml")
DEFAULT_SECRET = "/etc/l3dsr/secret"
DEFAULT_QUEUE = 33
DEFAULT_BACKENDS = ("192.168.33.20,id=1", "192.168.33.21,id=2")
MAX_ID_BITS = 7  # the jump of the timestamps must stay inside PAWS's half circle


@dataclass(frozen=True, slots=True)
class Backend:
    """id: stable number, from which tables are built. weight 0: no new flows."""

    id: int
    address: IPv4Address
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Hold:
    """Bounds on the segments of one flow that wait for the rest of their key."""

    segments: int = 512
    octets: int = 16384
    time_ms: int = 10_000
    policy: str = "hash"


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP and port with its backends.

    mss: octets; wscale: shift; both as the SYN-ACK offers them.
    """

    name: str
    vip: IPv4Address
    port: int
    dscp: int
    backends: tuple[Backend, ...]
    key: KeySpec = KeySpec("http.path")
    fallback: KeySpec = KeySpec("source")
    scheduler: str = "maglev"
    hash_balance_factor: int | None = None
    mss: int = 1460
    wscale: int = 7
    sack: bool = True
    timestamps: bool = True
    hold: Hold = Hold()


@dataclass(frozen=True, slots=True)
class Timeouts:
    """After how long without a packet a flow leaves the table."""

    idle_ms: int = 900_000
    half_closed_ms: int = 120_000
    reset_ms: int = 10_000


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. file: where it came from, for messages. takeover_rate: packets a second.

    new_flow_rate: flows a second; when more come, none that is open is put out by them.
    """

    services: tuple[Service, ...]
    interface: str = "eth1"
    secret_file: str = DEFAULT_SECRET
    engine: str = "auto"
    xdp: str = "auto"
    max_flows: int = 1_000_000
    hold_octets_total: int = 64 << 20
    id_bits: int = MAX_ID_BITS
    takeover_rate: int = 100_000
    new_flow_rate: int = 50_000
    queue: int = DEFAULT_QUEUE
    mark: int = 0x330
    metrics: tuple[str, int] | None = None
    log_level: str = "info"
    log_format: str = "text"
    timeouts: Timeouts = field(default_factory=Timeouts)
    file: str = COMMAND_LINE


SERVICE_FLAGS = (
    "vip", "port", "dscp", "backend", "key", "fallback", "scheduler", "hash_balance_factor"
)


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
    id_max = (1 << values.get("id_bits", MAX_ID_BITS)) - 1
    timeouts = _read_timeouts(table.table("timeouts"))
    tables = service_tables(table, service_flags, _describe)
    services = tuple(_read_service(service, id_max) for service in tables)
    _check_services(services, tables)
    return Config(services=services, timeouts=timeouts, file=table.file, **values)


def _describe(flags: dict[str, Any]) -> list[Table]:
    """The one service that flags describe."""
    texts = flags.get("backend", DEFAULT_BACKENDS)
    backends = [_describe_backend(text, index + 1) for index, text in enumerate(texts)]
    defaults = {"vip": "192.168.33.10", "port": 80}
    return [Flags({**defaults, **flags, "backend": backends})]


def _describe_backend(text: str, position: int) -> Table:
    """`ADDRESS[,id=N][,weight=W]` as a table; without an id its position counts."""
    address, *fields = text.split(",")
    backend: dict[str, Any] = {"address": address, "id": position}
    for entry in fields:
        name, equals, value = entry.partition("=")
        if name not in ("id", "weight") or not equals:
            raise ConfigError(COMMAND_LINE, "--backend", text, "ADDRESS[,id=N][,weight=W]")
        backend[name] = number(value)
    names = {key: f"--backend {key}" for key in ("address", "id", "weight")}
    return Flags(backend, names)


def _read_globals(table: Table) -> dict[str, Any]:
    """The keys that stand at the top of a file and are flags as well."""
    whole = settings.whole
    readers = {
        "interface": settings.text,
        "secret_file": settings.text,
        "engine": settings.choice("auto", "portable", "fast"),
        "xdp": settings.choice("auto", "native", "generic"),
        "max_flows": whole(1, 100_000_000),
        "hold_octets_total": whole(0, 1 << 40),
        "id_bits": whole(1, MAX_ID_BITS),
        "takeover_rate": whole(0, 100_000_000),
        "new_flow_rate": whole(0, 100_000_000),
        "queue": whole(0, 65535),
        "mark": whole(1, 0xFFFFFFFE),
        "metrics": settings.listen,
        "log_level": settings.log_level,
        "log_format": settings.choice("text", "json"),
    }
    values = {key: table.take(key, reader, None) for key, reader in readers.items()}
    return {key: value for key, value in values.items() if value is not None}


def _read_timeouts(table: Table) -> Timeouts:
    default = Timeouts()
    timeouts = Timeouts(
        idle_ms=table.take("idle", settings.seconds(1, 1e6), default.idle_ms),
        half_closed_ms=table.take("half_closed", settings.seconds(1, 1e6), default.half_closed_ms),
        reset_ms=table.take("reset", settings.seconds(1, 1e6), default.reset_ms),
    )
    table.finish()
    return timeouts


def _read_service(table: Table, id_max: int) -> Service:
    vip = table.require("vip", settings.ipv4)
    port = table.require("port", settings.whole(1, 65535))
    backend_tables = table.tables("backend")
    service = Service(
        name=table.take("name", settings.text, f"{vip}:{port}"),
        vip=vip,
        port=port,
        dscp=table.take("dscp", settings.whole(1, dscp.MAX), dscp.DEFAULT),
        backends=tuple(_read_backend(backend, id_max) for backend in backend_tables),
        key=table.take("key", _key_spec, KeySpec("http.path")),
        fallback=table.take("fallback", _key_spec, KeySpec("source")),
        scheduler=table.take("scheduler", settings.choice(*SCHEDULERS), "maglev"),
        hash_balance_factor=table.take("hash_balance_factor", settings.whole(100, 65535), None),
        mss=table.take("mss", settings.whole(536, 3960), 1460),
        wscale=table.take("wscale", settings.whole(0, WSCALE_MAX), 7),
        sack=table.take("sack", settings.flag, True),
        timestamps=table.take("timestamps", settings.flag, True),
        hold=_read_hold(table.table("hold")),
    )
    table.finish()
    if not service.backends:
        raise table.error("backend", None, "at least one backend")
    if service.hash_balance_factor and service.scheduler not in HASHING:
        raise table.error(
            "hash_balance_factor", service.hash_balance_factor,
            f"none with scheduler {service.scheduler}; it bounds " + " and ".join(HASHING),
        )
    _check_backends(service, backend_tables)
    return service


def _key_spec(value: Any) -> KeySpec:
    return KeySpec.parse(settings.text(value))


def _read_backend(table: Table, id_max: int) -> Backend:
    backend = Backend(
        id=table.require("id", settings.whole(1, id_max)),
        address=table.require("address", settings.ipv4),
        weight=table.take("weight", settings.whole(0, 65535), 1),
    )
    table.finish()
    return backend


def _read_hold(table: Table) -> Hold:
    default = Hold()
    hold = Hold(
        segments=table.take("segments", settings.whole(1, 1024), default.segments),
        octets=table.take("octets", settings.whole(1, 1 << 20), default.octets),
        time_ms=table.take("time", settings.seconds(0.1, 60), default.time_ms),
        policy=table.take("policy", settings.choice("hash", "reset"), default.policy),
    )
    table.finish()
    return hold


def _check_backends(service: Service, tables: list[Table]) -> None:
    """Within a service each id, and each address, names one backend."""
    ids: set[int] = set()
    addresses: set[IPv4Address] = set()
    for backend, table in zip(service.backends, tables, strict=True):
        if backend.id in ids:
            raise table.error("id", backend.id, "an id that no other backend has")
        if backend.address in addresses:
            raise table.error(
                "address", str(backend.address),
                "an address that no other backend has (give a backend more by its weight)",
            )
        ids.add(backend.id)
        addresses.add(backend.address)


def _check_services(services: tuple[Service, ...], tables: list[Table]) -> None:
    """One DSCP and one name for each VIP and port; no VIP is a backend's own address."""
    seen: set[tuple[str, object]] = set()
    vips = {service.vip for service in services}
    for service, table in zip(services, tables, strict=True):
        for key, value in (("vip", f"{service.vip}:{service.port}"), ("dscp", service.dscp),
                           ("name", service.name)):
            if (key, value) in seen:
                raise table.error(key, value, f"a {_ONE_EACH[key]} that no other service has")
            seen.add((key, value))
        for backend in service.backends:
            if backend.address in vips:
                raise table.error(
                    "backend", str(backend.address),
                    "the bridge's own address, which is another one than the VIP",
                )


_ONE_EACH = {"vip": "VIP and port", "dscp": "DSCP", "name": "name"}
