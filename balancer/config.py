"""The balancer's settings, and how they are read from TOML or flags."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Annotated, Any

from balancer.health import settings as health
from balancer.health.settings import NO_CHECK, Check
from balancer.keys.request import FORMS, KeySpec
from balancer.pool.schedulers import HASHING, SCHEDULERS
from common.cluster.service import Endpoint
from common.encap.dscp import DEFAULT as DSCP_DEFAULT
from common.encap.dscp import MAX as DSCP_MAX
from common.settings import raise_faults, schema, shared
from common.settings.flags import Flags, described, filled, keys_of, names_of, number, top_table
from common.settings.host import HostView
from common.settings.readers import Reader, choice, flag, ipv4, quoted, seconds, text, whole
from common.settings.schema import Draft, Setting, Tables
from common.settings.shared import Mark, Queue, Shared
from common.settings.table import Table
from common.wire.options import WSCALE_MAX

DEFAULT_FILE = shared.DIRECTORY / "balancer.toml"
MAX_ID_BITS = 7  # the jump of the timestamps must stay inside PAWS's half circle
_EXAMPLE = """\
[[service]]
vip = "192.0.2.10"
port = 80
backend = [{ id = 1, address = "192.0.2.20" }, { id = 2, address = "192.0.2.21" }]"""

key_spec = Reader(lambda value: KeySpec.parse(text(value)), "key", quoted)


@dataclass(frozen=True, slots=True)
class Backend:
    """A bridge that flows are given to."""

    id: Annotated[int, Setting(
        whole(1, (1 << MAX_ID_BITS) - 1), "the backend's permanent number",
        "Schedulers and timestamps go by it: it never changes, and no other backend ever gets it.",
        kind="1 to 2^`id_bits` − 1",
    )]
    address: Annotated[IPv4Address, Setting(
        ipv4("the server's port goes into the bridge's `server`"),
        "the address of the bridge, not of the server",
    )]
    weight: Annotated[int, Setting(
        whole(0, 65535), "share of new flows",
        "With 0 it gets no new ones; its open ones continue.",
    )] = 1


@dataclass(frozen=True, slots=True)
class Hold:
    """Bounds on the segments of one flow that wait for the rest of their key."""

    segments: Annotated[int, Setting(
        whole(1, 1024), "how many segments are kept at most", "Repetitions do not count.")] = 512
    octets: Annotated[int, Setting(whole(1, 1 << 20), "how many octets are kept at most")] = 16384
    time_ms: Annotated[int, Setting(seconds(0.1, 60), "how long they are kept")] = 10_000
    policy: Annotated[str, Setting(
        choice("hash", "reset"), "what happens when a limit is reached",
        "Take the key from what is there (`hash`), or reset the connection.")] = "hash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A VIP and port with its backends."""

    name: Annotated[str, Setting(
        text, "in logs, metrics and `--service`", default='`"VIP:PORT"`')]
    vip: Annotated[IPv4Address, Setting(
        ipv4("the port goes into `port`"), "the virtual IP", metavar="ADDR", lab="192.168.33.10",
    )]
    port: Annotated[int, Setting(whole(1, 65535), "its port", metavar="N", flag_default=80)]
    dscp: Annotated[int, Setting(
        whole(1, DSCP_MAX), "codepoint that marks its packets",
        "The bridges know VIP and port by it, so each service has another one. Codepoints "
        "`xxxx11` (3, 7, 11 …) are for local use. The network to the bridges must not change it.",
        metavar="N",
    )] = DSCP_DEFAULT
    key: Annotated[KeySpec, Setting(
        key_spec, "what is hashed", "See [below](#keys).",
        f": {', '.join(FORMS)}; a path may be followed by ,depth=N and ,len=N", metavar="KEY",
    )] = KeySpec("http.path")
    fallback: Annotated[KeySpec, Setting(
        key_spec, "what is hashed where the payload has no such key",
        "Where it has neither, the client's address is.", metavar="KEY",
    )] = KeySpec("source")
    scheduler: Annotated[str, Setting(
        choice(*SCHEDULERS), "how the backend is chosen",
        "`maglev` and `rendezvous` hash the key, the others do not ask for it.",
        metavar="|".join(SCHEDULERS),
    )] = "maglev"
    hash_balance_factor: Annotated[int | None, Setting(
        whole(100, 65535, "percent"),
        "with a hashing scheduler: limit on a backend's flows, in percent of its fair share",
        "A backend at its limit is skipped.", metavar="PERCENT",
    )] = None
    mss: Annotated[int, Setting(
        whole(536, 3960, "octets"), "the largest maximum segment size that the SYN-ACK offers",
        "It offers less where the path to a backend is narrower.",
    )] = 1460
    wscale: Annotated[int, Setting(
        whole(0, WSCALE_MAX), "the window scale that the SYN-ACK offers",
        "The bridges need the same `wscale`.",
    )] = 7
    sack: Annotated[bool, Setting(
        flag, "whether to accept selective acknowledgements")] = True
    timestamps: Annotated[bool, Setting(
        flag, "whether to accept timestamps",
        "Without them, flows do not survive the loss of the flow table.")] = True
    hold: Annotated[Hold, Tables("hold", Hold)] = Hold()
    check: Annotated[Check, Tables("check", Check)] = NO_CHECK
    backends: Annotated[tuple[Backend, ...], Tables(
        "backend", Backend,
        "address of a backend's packetbridge, repeatable; ids must never change",
        metavar="ADDR[,id=N][,weight=W]", lab=("192.168.33.20,id=1", "192.168.33.21,id=2"),
    )]
    backends_file: Annotated[str | None, Setting(
        text, "a file with further backends, one a line",
        "It is looked at each second; see [below](#backends-in-a-file).",
    )] = None
    kind: str = "split"  # a name of balancer/modes/kinds.py: there is one, so no file need say it

    @property
    def endpoint(self) -> Endpoint:
        """Where clients connect to."""
        return Endpoint.tcp(self.vip, self.port)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """After how long without a packet a flow leaves the table."""

    idle_ms: Annotated[int, Setting(seconds(1, 1e6), "an open flow")] = 900_000
    half_closed_ms: Annotated[int, Setting(
        seconds(1, 1e6), "the client has sent its FIN",
        "A flow without timestamps stays as long as an open one: the FIN may be anybody's.",
    )] = 120_000
    reset_ms: Annotated[int, Setting(
        seconds(1, 1e6), "the client has sent a RST",
        "A flow without timestamps stays as long as an open one: the RST may be anybody's.",
    )] = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Shared):
    """All of it."""

    xdp: Annotated[str, Setting(
        choice("auto", "native", "generic"), "where the fast engine's program runs",
        "In the interface's driver (`native`), or in the kernel after it (`generic`). `auto` "
        "takes the driver if that is possible and no backend is behind an interface that takes no "
        "redirected frames.", metavar="auto|native|generic", restart=True,
    )] = "auto"
    hold_octets_total: Annotated[int, Setting(
        whole(0, 1 << 40, "octets"),
        "limit on the memory of all flows that wait for the rest of their key",
        "When it is reached, the oldest of them is decided by what is there, first those of a "
        "source network (/24) that has more than an eighth of it.", metavar="N",
    )] = 64 << 20
    id_bits: Annotated[int, Setting(
        whole(1, MAX_ID_BITS), "bits of a backend's id",
        "Ids go up to 2^`id_bits` − 1, and packets name their backend for 2^(31 − `id_bits`) ms "
        "after its handshake: 4.6 hours with 7 bits, 37 hours with 4. The same on all balancers of "
        "a cluster.", metavar="N", restart=True,
    )] = MAX_ID_BITS
    takeover_rate: Annotated[int, Setting(
        whole(0, 100_000_000, "packets a second"),
        "how many packets of flows that are not in the table may be forwarded by their "
        "timestamps alone",
        "A prefix of 24 bits has an eighth of it. Flows whose packets go on, three of them, are "
        "entered in the table, and not limited.", metavar="N",
    )] = 100_000
    new_flow_rate: Annotated[int, Setting(
        whole(0, 100_000_000, "flows a second"),
        "rate of new flows from which a full table evicts no open one",
        "New ones are then reset (`table_full`).", metavar="N",
    )] = 50_000
    vip_shared: Annotated[bool, Setting(
        flag, "whether other balancers have the VIPs as well, and routers choose among them",
        "If not, a VIP that another host on the network has already is refused, and one that "
        "another host takes later is defended.", metavar="true|false",
    )] = False
    state_directory: Annotated[str, Setting(
        text, "where is remembered what a restart must not forget",
        "The ids that backends of a `backends_file` have, and what the operator wants kept.",
        metavar="DIR", restart=True,
    )] = shared.STATE_DIRECTORY
    queue: Queue = 33
    mark: Mark = 0x330
    timeouts: Annotated[Timeouts, Tables("timeouts", Timeouts)] = field(default_factory=Timeouts)
    services: Annotated[tuple[Service, ...], Tables("service", Service)]
    hash_seed: bytes = field(default=b"", repr=False)  # of the secret's file, not of this one


def load(
    named: str | None = None, flags: Mapping[str, Any] | None = None, host: HostView | None = None,
) -> Config:
    """The configuration of a file, of flags, or of the lab where neither says anything.

    named: the file that the command line names; None takes DEFAULT_FILE where it exists.
    flags: those that were given, by key; they count before the file's globals.
    host:  what it is for, if that matters. Raises: ConfigError, with all faults.
    """
    return read(top_table(named, DEFAULT_FILE), flags, host)


def read(
    table: Table, flags: Mapping[str, Any] | None = None, host: HostView | None = None
) -> Config:
    """As `load`, from the top table of a file. Raises: ConfigError."""
    given = dict(flags or {})
    of_service = {key: given.pop(key) for key in keys_of(Service) if key in given}
    top = schema.read(Config, table)
    schema.override(top, Flags(given, names_of(Config), table.faults))
    services: list[Draft[Service]] = top.values["services"]
    services += [schema.read(Service, one) for one in
                 described(top, of_service, lambda: _describe(top, of_service, host))]
    shared.check_services(services)
    for service in services:
        _check_backends(service, (1 << (top.get("id_bits") or MAX_ID_BITS)) - 1)
        health.complete(service)
    _check_vips(services)
    if services or "interface" in top.origins:
        judged = shared.check_interface(top, host)
        if judged:
            _check_host(top, services, judged)
    raise_faults(table.faults)
    top.values["file"] = table.file
    return top.build()


def _describe(
    top: Draft[Config], given: Mapping[str, Any], host: HostView | None
) -> list[Table]:
    """The one service that flags describe; in the lab, they need not."""
    table, in_lab = top.table, shared.is_in_lab(top, host)
    if not given and not in_lab and host:
        shared.refuse_silence(top, host, DEFAULT_FILE, _EXAMPLE)
        return []
    values = filled(Service, given, in_lab)
    backends = [_describe_backend(text, index + 1, table)
                for index, text in enumerate(values.get("backend", ()))]
    return [Flags({**values, "backend": backends}, faults=table.faults)]


def _describe_backend(text: str, position: int, top: Table) -> Table:
    """`ADDRESS[,id=N][,weight=W]` as a table; without an id its position counts."""
    address, *fields = text.split(",")
    backend: dict[str, Any] = {"address": address, "id": position}
    for entry in fields:
        name, equals, value = entry.partition("=")
        if name not in ("id", "weight") or not equals:
            Flags({}, faults=top.faults).refuse("backend", text, "ADDRESS[,id=N][,weight=W]")
            continue
        backend[name] = number(value)
    names = {key: f"--backend {key}" for key in ("address", "id", "weight")}
    return Flags(backend, names, top.faults)


# --- what no single value shows ---


def _check_backends(service: Draft[Service], id_max: int) -> None:
    """Within a service each id, and each address, names one backend."""
    ids: set[int] = set()
    addresses: set[IPv4Address] = set()
    backends: list[Draft[Backend]] = service.values["backends"]
    if (not backends and not service.get("backends_file")
            and not {"backend", "backends_file"} & service.table.faulty):
        service.table.refuse("backend", None, "at least one backend, or a `backends_file`")
    for backend in backends:
        number, address = backend.get("id"), backend.get("address")
        if number is not None and number > id_max:
            backend.refuse("id", f"a whole number from 1 to {id_max}, as id_bits has it")
        if number is not None and number in ids:
            backend.refuse("id", "an id that no other backend has")
        if address is not None and address in addresses:
            backend.refuse("address", "an address that no other backend has (give a backend more "
                                      "by its weight)")
        ids.add(number)
        addresses.add(address)
    factor, scheduler = service.get("hash_balance_factor"), service.get("scheduler")
    if factor and scheduler and scheduler not in HASHING:
        service.refuse("hash_balance_factor", f"none with scheduler {scheduler}; it bounds "
                       + " and ".join(HASHING))


def _check_vips(services: list[Draft[Service]]) -> None:
    """No VIP is a backend's own address."""
    vips = {service.get("vip") for service in services} - {None}
    for service in services:
        for backend in service.values["backends"]:
            if backend.get("address") in vips:
                backend.refuse("address", "the bridge's own address, which is another one than "
                                          "the VIP")


def _check_host(top: Draft[Config], services: list[Draft[Service]], host: HostView) -> None:
    """The host has an address besides the VIPs, and it is none of the backends."""
    vips = {service.get("vip") for service in services} - {None}
    for service in services:
        found = host.where(service.get("vip"))
        if found and found[1].network.prefixlen < 32:
            service.refuse("vip", f"an address that no host has: {found[1]} is this host's own, on "
                                  f"{found[0]}")
        _check_no_networks(service, "vip", host)
        for backend in service.values["backends"]:
            _check_no_networks(backend, "address", host)
            found = host.where(backend.get("address"))
            if found and found[1].ip not in vips:
                backend.refuse("address", f"the address of another host, where the packetbridge "
                                          f"runs: {found[1].ip} is this host's own, on {found[0]}")
    own = {address for name in host.usable for address in host.addresses_of(name)} - vips
    if not own:
        top.refuse("interface", "one of a host that has an address besides its VIPs, from which "
                                "it asks for the bridges: ip address add ADDRESS/PREFIX dev "
                                f"{top.get('interface')}")


def _check_no_networks(draft: Draft[Any], key: str, host: HostView) -> None:
    """Refuse what, in a network of this host, means all of its hosts or the network itself."""
    address = draft.get(key)
    for name in host.usable:
        for own in host.interfaces[name]:
            network = own.network
            if network.prefixlen < 31 and address in (network.network_address,
                                                      network.broadcast_address):
                draft.refuse(key, f"the address of one host, which {address} is not in {network}, "
                                  f"the network at {name}")
                return
