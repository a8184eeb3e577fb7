"""The settings that both programs have, and what both refuse of them."""

from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any

from common.settings import COMMAND_LINE, ConfigError
from common.settings.host import HostView
from common.settings.readers import (
    choice,
    duration,
    flag,
    listen,
    seconds,
    text,
    unix_socket,
    whole,
)
from common.settings.schema import Draft, Setting

DIRECTORY = Path("/etc/l3dsr")
STATE_DIRECTORY = "/var/lib/l3dsr"
DEFAULT_SECRET = str(DIRECTORY / "secret")
LAB = IPv4Network("192.168.33.0/24")  # the Vagrantfile's; only there have services a default
LOOPBACK = "lo"

Interface = Annotated[str, Setting(
    text, "where packets come in",
    "The balancer adds the VIPs to it while it runs. It needs another address of its own.",
    metavar="NAME", restart=True,
)]
Queue = Annotated[int, Setting(
    whole(0, 65535), "NFQUEUE number, of this program alone", metavar="N", restart=True,
)]
Mark = Annotated[int, Setting(
    whole(1, 0xFFFFFFFE, show=hex), "firewall mark of the packets that the program sends",
    "It exempts them from connection tracking. The bridge marks packets to the server with it, "
    "and packets to clients with the next number. Change it if something else on the host uses "
    "it.", metavar="N", restart=True,
)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """At the top of both files. file: where it all came from, for messages."""

    interface: Interface = "eth1"
    secret_file: Annotated[str, Setting(
        text, "the cluster's secret, mode 0600",
        "`balancer keygen` makes one ([below](#the-secret)).", metavar="FILE",
    )] = DEFAULT_SECRET
    engine: Annotated[str, Setting(
        choice("auto", "portable", "fast"), "what handles packets",
        "`fast` is eBPF in the kernel, with the portable engine behind it for unusual packets; "
        "`portable` is Python alone. `auto` takes the fast one if the kernel and the interface "
        "allow it; if not, the line with `ready` says why.",
        metavar="auto|portable|fast", restart=True,
    )] = "auto"
    accept_version_1: Annotated[bool, Setting(
        flag, "whether to take what balancers of version 1 of the wire protocol send",
        "For as long as a cluster is being upgraded ([below](#upgrading)): it is far easier to "
        "forge.", metavar="true|false", restart=True,
    )] = False
    max_flows: Annotated[int, Setting(
        whole(1, 100_000_000), "size of the flow table",
        "When it is full, a new flow evicts the one that is closest to its end. The fast engine "
        "takes 128 octets for each from the start, rounded up to a power of two.", metavar="N",
        restart=True,
    )] = 1_000_000
    queue: Queue
    mark: Mark
    probe_port: Annotated[int, Setting(
        whole(0, 65535), "UDP port at which bridges answer a doctor",
        "The same on all hosts. At a bridge 0 turns that off ([below](#when-it-hangs-doctor)).",
        metavar="N", restart=True,
    )] = 7733
    metrics: Annotated[tuple[str, int] | None, Setting(
        listen, "where to answer Prometheus, the API and, at the balancer, browsers",
        "See [below](#while-it-runs-metrics-and-logs).", metavar="ADDR:PORT", restart=True,
    )] = None
    control: Annotated[bool | str, Setting(
        unix_socket, "whether there is a control socket, or where",
        "With `true` it is `/run/l3dsr/PROGRAM.sock`, or `PROGRAM-N.sock` if `queue` is another N "
        "than the default. Root and its group may use it ([below](#operating-it)).",
        metavar="true|false|PATH", restart=True,
    )] = True
    token_file: Annotated[str | None, Setting(
        text, "a file of mode 0600 with the token that orders at the metrics' address need",
        "Without one, nothing can be changed there ([below](#operating-it)).", metavar="FILE",
        restart=True,
    )] = None
    log_level: Annotated[str, Setting(
        choice("debug", "info", "warning", "error"), "how much is logged",
        metavar="debug|info|warning|error", restart=True,
    )] = "info"
    log_format: Annotated[str, Setting(
        choice("text", "json"), "form of the log, on stderr", metavar="text|json",
        restart=True,
    )] = "text"
    watch: Annotated[bool, Setting(
        flag, "whether to take the file's changes as soon as it has changed",
        "It is looked at each second; see [below](#changing-the-configuration).",
        metavar="true|false",
    )] = False
    drain_timeout_ms: Annotated[int, Setting(
        seconds(0, 1e6), "how long the flows of what is configured no more may go on",
        "After that their clients are reset at their next packet.", metavar="SECONDS",
    )] = 300_000
    lifetime_ms: Annotated[int | None, Setting(
        duration, "a kill switch: how long after its start the program ends by itself",
        "All is undone then; and if it has been killed, its programs leave all packets to the host "
        "from then on ([below](#a-kill-switch)). The flag is `--for`.", metavar="TIME",
        restart=True, flag="--for",
    )] = None
    file: str = COMMAND_LINE


def check_interface(top: Draft[Any], host: HostView | None) -> HostView | None:
    """Refuse an interface that cannot be used.

    Returns: the host, if the settings can be judged by it.
    """
    interface = top.get("interface")
    if interface == LOOPBACK:
        names = f": {', '.join(host.usable)}" if host and host.usable else ""
        top.refuse("interface", f"an interface that clients' packets come in by{names}")
        return None
    if host is None or interface is None:
        return None
    if interface not in host.interfaces:
        if host.is_certain:
            top.refuse("interface", f"an interface of this host: {', '.join(host.usable)}")
        return None
    return host


def is_in_lab(top: Draft[Any], host: HostView | None) -> bool:
    """Whether the services of the Vagrantfile's network may be taken for granted.

    host: None where nothing of it is used, so that nothing can go wrong.
    """
    interface = top.get("interface")
    if host is None:
        return True
    if interface in (None, LOOPBACK) or (
        "interface" in top.origins and host.is_certain and interface not in host.interfaces
    ):
        return True  # that is refused, which is enough
    return any(address in LAB for address in host.addresses_of(interface))


def refuse_silence(top: Draft[Any], host: HostView, file: Path, example: str) -> None:
    """Note that nothing says which services there are. example: TOML that would."""
    interface = top.get("interface")
    addresses = ", ".join(map(str, host.interfaces.get(interface, ()))) or "no address"
    names = [name for name in host.usable if host.interfaces[name]] or host.usable or ["eth0"]
    lines = example.splitlines()
    if interface not in host.interfaces:
        lines.insert(0, f'interface = "{names[0]}"')
    what = f"{interface} has {addresses}"
    if interface not in host.interfaces:
        what = f"there is no {interface}"
    top.table.faults.append(ConfigError(
        str(file), "service", None,
        "a file with at least one [[service]], or flags that describe one: the defaults hold only "
        f"where the interface has an address in {LAB}, and {what}. Lines like these are missing:",
        "\n".join(f"    {line}" for line in lines),
    ))


_ONE_EACH = {"vip": "VIP and port", "dscp": "DSCP", "name": "name"}


def check_services(services: list[Draft[Any]]) -> None:
    """One DSCP and one name for each VIP and port; a name that is not given is these two."""
    seen: set[tuple[str, object]] = set()
    for service in services:
        ends = (service.get("vip"), service.get("port"))
        end = f"{ends[0]}:{ends[1]}" if None not in ends else None
        values = {"vip": end, "dscp": service.get("dscp"), "name": service.get("name")}
        if "name" not in service.table and end:
            values["name"] = service.values["name"] = end
        if ("vip", end) in seen and values["name"] == end:
            del values["name"]  # one word about it is enough
        for key, value in values.items():
            if value is not None and (key, value) in seen:
                service.refuse(key, f"a {_ONE_EACH[key]} that no other service has", value)
            seen.add((key, value))
