"""The bridge's settings, and how they are read from TOML or flags."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Annotated, Any

from common.cluster.service import Endpoint
from common.encap.dscp import DEFAULT as DSCP_DEFAULT
from common.encap.dscp import MAX as DSCP_MAX
from common.settings import raise_faults, schema, shared
from common.settings.flags import Flags, described, filled, keys_of, names_of, number, top_table
from common.settings.host import HostView
from common.settings.readers import choice, ipv4, ipv4_port, seconds, text, whole
from common.settings.schema import Draft, Setting, Tables
from common.settings.shared import Mark, Queue, Shared
from common.settings.table import Table
from common.wire.options import WSCALE_MAX

DEFAULT_FILE = shared.DIRECTORY / "packetbridge.toml"
_EXAMPLE = """\
[[service]]
vip = "192.0.2.10:80"
server = "192.0.2.20:8080\""""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A VIP and port, the DSCP that names it, and the server behind it."""

    name: Annotated[str, Setting(text, "in logs", default='`"VIP:PORT"`')]
    dscp: Annotated[int, Setting(
        whole(1, DSCP_MAX), "the codepoint that the balancer has for this VIP and port",
        "The flag is `--vip DSCP=ADDR:PORT`.",
    )] = DSCP_DEFAULT
    vip: Annotated[IPv4Address, Setting(
        ipv4_port, "the virtual IP that the server answers for, and its port",
        "The flag begins with the DSCP, and is repeatable.", fields=("vip", "port"),
        metavar="DSCP=ADDR:PORT", repeated=True, lab=("3=192.168.33.10:80",),
    )]
    port: int
    server: Annotated[IPv4Address, Setting(
        ipv4_port, "where the server listens", fields=("server", "server_port"),
        metavar="ADDR:PORT", lab="192.168.33.30:80",
    )]
    server_port: int
    wscale: Annotated[int, Setting(
        whole(0, WSCALE_MAX), "the same as the balancer's `wscale`",
    )] = 7

    @property
    def endpoint(self) -> Endpoint:
        """Where clients connect to."""
        return Endpoint.tcp(self.vip, self.port)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """After how long without a packet a flow leaves the table; replay: a server is given up."""

    idle_ms: Annotated[int, Setting(seconds(1, 1e6), "an open flow")] = 900_000
    closing_ms: Annotated[int, Setting(
        seconds(1, 1e6), "both sides have sent and acknowledged a FIN")] = 10_000
    reset_ms: Annotated[int, Setting(
        seconds(1, 1e6), "one side has sent a RST, or the server did not answer")] = 10_000
    replay_ms: Annotated[int, Setting(
        seconds(1, 600), "how long a server may take to answer a SYN before its client is reset",
    )] = 15_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Shared):
    """All of it."""

    address: Annotated[IPv4Address | None, Setting(
        ipv4("balancers send to it by the port of the VIP"),
        "the bridge's own, which balancers send to", metavar="ADDR", restart=True,
        default="the interface's first that is neither VIP nor server",
    )] = None
    mode: Annotated[str, Setting(
        choice("auto", "splice", "adopt"), "how connections reach the server",
        "`adopt`: the server's own stack takes them over with the cookie's numbers, and the "
        "bridge no longer touches them; it needs Linux 6.9, and a server that listens on this "
        "host and not with MPTCP. `splice`: the bridge translates every packet. `auto` adopts "
        "where it can, decided for each service; where it cannot, the line with `ready` says why.",
        metavar="auto|splice|adopt", restart=True,
    )] = "auto"
    queue: Queue = 34
    mark: Mark = 0x332
    timeouts: Annotated[Timeouts, Tables("timeouts", Timeouts)] = field(default_factory=Timeouts)
    services: Annotated[tuple[Service, ...], Tables("service", Service)]


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
    _check_top(top, services)
    if services or "interface" in top.origins:
        judged = shared.check_interface(top, host)
        if judged:
            _check_host(top, services, judged)
    raise_faults(table.faults)
    top.values["file"] = table.file
    return top.build()


def _describe(
    top: Draft[Config], given: Mapping[str, Any], host: HostView | None
) -> Iterator[Table]:
    """The services that flags describe: each `--vip`, all with the one server."""
    table, in_lab = top.table, shared.is_in_lab(top, host)
    if not given and not in_lab and host:
        shared.refuse_silence(top, host, DEFAULT_FILE, _EXAMPLE)
        return
    values = filled(Service, given, in_lab)
    if "vip" not in values:
        Flags({}, faults=table.faults).refuse("vip", None, "DSCP=ADDRESS:PORT, at least once")
    for text_given in values.get("vip", ()):
        codepoint, equals, vip = text_given.partition("=")
        if not equals:
            Flags({}, faults=table.faults).refuse(
                "vip", text_given, "DSCP=ADDRESS:PORT, such as 3=192.168.33.10:80")
            continue
        service = {**values, "dscp": number(codepoint), "vip": vip}
        yield Flags(service, {"dscp": "--vip"}, table.faults)


def first_own(services: Iterable[Any], addresses: Iterable[IPv4Address]) -> IPv4Address | None:
    """The first address that balancers can send to.

    services: settings, or drafts of them as far as they are right. addresses: the interface's. A
    server may have the same address as the bridge, if its port is another one than its VIP's.
    """
    taken = {service.server for service in services if service.server_port == service.port}
    taken |= {service.vip for service in services}
    return next((address for address in addresses if address not in taken), None)


# --- what no single value shows ---


def _check_top(top: Draft[Config], services: list[Draft[Service]]) -> None:
    if (top.get("mode"), top.get("engine")) == ("adopt", "portable"):
        top.refuse("mode", "auto or splice, or another engine than portable: connections are "
                           "adopted by the fast one")
    if top.get("address") and top.get("address") in {service.get("vip") for service in services}:
        top.refuse("address", "the bridge's own address: the VIP is the balancer's")
    for service in services:
        if top.get("address") and (top.get("address"), service.get("port")) == (
                service.get("server"), service.get("server_port")):
            service.refuse("server", "another address or port than the bridge's own address with "
                                     "the VIP's port: handoffs go there",
                           f"{service.get('server')}:{service.get('server_port')}")


def _check_host(top: Draft[Config], services: list[Draft[Service]], host: HostView) -> None:
    """The bridge has an address, and what it is to adopt for is here."""
    interface, address = top.values["interface"], top.get("address")
    addresses = host.addresses_of(interface)
    shown = ", ".join(map(str, addresses)) or "it has none"
    if address and address not in addresses:
        top.refuse("address", f"an address of {interface}: {shown}")
    vips = {service.get("vip") for service in services} - {None}
    for service in services:
        vip, server = service.get("vip"), service.get("server")
        if server in vips and not host.where(server):
            service.refuse("server", "the server's own address: connections to the VIP go to the "
                                     "balancer, and would come round again",
                           f"{server}:{service.get('server_port')}")
            continue
        if vip in addresses and vip != address:
            service.refuse("vip", f"one that this host does not have on {interface}, where it "
                                  "would answer ARP in the balancer's place: ip address del "
                                  f"{vip} dev {interface}",
                           f"{vip}:{service.get('port')}")
        if server and top.get("mode") == "adopt" and not host.where(server):
            service.refuse("server", "an address of this host, since mode is adopt; for a server "
                                     "behind this host mode has to be auto or splice",
                           f"{server}:{service.get('server_port')}")
    whole_services = [service.build() for service in services if service.is_whole]
    if address is None and "address" not in top.table.faulty and \
            len(whole_services) == len(services) and first_own(whole_services, addresses) is None:
        top.refuse("interface", "an interface with an IPv4 address besides the server's, for the "
                                f"balancer to send to; {interface} has {shown}")
