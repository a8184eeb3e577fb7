"""What can be seen of this host: the program, the interface, the clock, the VIPs."""

import socket
import struct
from ipaddress import IPv4Address

from balancer.config import Config
from balancer.doctor.findings import OfHost
from balancer.doctor.path import others_with
from balancer.offload import devices
from common.bpf import features
from common.cluster import probe
from common.cluster.secrets import Secrets
from common.doctor.host import clock_is_synchronised
from common.engine import lock
from common.engine.devices import Devices, joins_packets
from common.engine.netlink import Netlink, attributes_in
from common.settings import ConfigError

_GETLINK, _LINK = 18, struct.Struct("=BBHiII")  # linux/rtnetlink.h: ifinfomsg
_IFLA_XDP, _ATTACHED = 43, 2  # linux/if_link.h
_MODES = {1: "native", 2: "generic", 3: "native", 4: "native"}


def look(config: Config, secrets: Secrets, client: bytes) -> OfHost:
    """See it. client: as in OfHost. Raises: OSError."""
    vips = dict.fromkeys(service.vip for service in config.services)
    found = of_running(config, secrets, "", asks_clock=True)
    others = others_with(config.interface, [vip.packed for vip in vips])
    is_running = any(lock.is_taken(f"vip/{vip}") for vip in vips)
    return found._replace(
        is_running=is_running,
        why_portable="" if found.xdp or not is_running else _why_portable(config),
        others=tuple((str(IPv4Address(vip)), mac.hex(":")) for vip, mac in others),
        client=str(IPv4Address(client)))


def of_running(
    config: Config, secrets: Secrets, why_portable: str, asks_clock: bool
) -> OfHost:
    """What there is to be seen at once, where the balancer runs.

    asks_clock: whether to ask what keeps the clock right; else something does.

    Raises: OSError.
    """
    xdp = xdp_mode(config.interface)
    return OfHost(
        config.interface, True, config.engine, xdp, why_portable,
        _why_generic(config.interface) if xdp == "generic" else "",
        joins_packets(config.interface), not asks_clock or clock_is_synchronised(), (),
        probe.key_ids(secrets), "")


def xdp_mode(interface: str) -> str:
    """`native`, `generic`, or empty where there is no program. Raises: OSError."""
    netlink = Netlink()
    try:
        index = socket.if_nametoindex(interface)
        link = netlink.ask(_GETLINK, _LINK.pack(0, 0, 0, index, 0, 0))[0].attributes
    finally:
        netlink.close()
    attached = attributes_in(link.get(_IFLA_XDP, b"")).get(_ATTACHED, b"\0")
    return _MODES.get(attached[0], "")


def _why_portable(config: Config) -> str:
    try:
        return features.refusal(config.engine, config.interface) or devices.refusal(config)
    except ConfigError as error:
        return error.expected


def _why_generic(interface: str) -> str:
    found = Devices()
    try:
        kind = found.get(socket.if_nametoindex(interface)).kind
    finally:
        found.close()
    return f"it is a {kind}" if kind else "its driver has no native one, or xdp = \"generic\""
