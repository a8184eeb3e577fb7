"""What the fast engine may do with this host's interfaces.

A frame that a program redirects, or sends back, without the stack is lost without a word where the
interface cannot take it: a veth whose peer has neither program nor GRO, a macvlan, a bridge. And a
program sees no VLAN tag that the NIC has taken off.
"""

import logging
import socket
from collections.abc import Iterable

from balancer.config import Config
from balancer.paths import Route
from common.bpf.links import Mode
from common.engine.devices import Device, Devices, strips_tags
from common.settings import ConfigError

log = logging.getLogger(__name__)


def refusal(config: Config) -> str:
    """Why a program cannot serve at the interface; empty if nothing is seen to be against it.

    Raises: ConfigError where `xdp` asks for what would lose packets.
    """
    name = config.interface
    devices = Devices()
    try:
        found = devices.all()
    finally:
        devices.close()
    own = next(device for device in found if device.name == name)
    lossy = [device.name for device in _senders(own, found)
             if device.kind == "veth" and device.is_told and not device.takes_frames]
    if config.xdp == "native" and lossy:
        raise ConfigError(
            config.file, "xdp", "native",
            f"auto or generic: what a program sends by {lossy[0]} is lost, since its peer has "
            "neither a program nor GRO",
        )
    vlans = [device.name for device in found
             if device.kind == "vlan" and device.link == own.ifindex]
    if vlans and strips_tags(name):
        return (f"{name} takes the tags of its VLANs ({', '.join(vlans)}) off before a program "
                f"sees them; `ethtool -K {name} rxvlan off` ends that")
    return ""


def wanted_mode(xdp: str, interface: str, routes: Iterable[Route]) -> Mode | None:
    """How the program is to run; None: native where the driver can, else generic.

    xdp: as configured.
    """
    if xdp != "auto":
        return Mode(xdp)
    devices = Devices()
    try:
        own = devices.get(socket.if_nametoindex(interface))
        senders = _senders(own, devices.all())
    finally:
        devices.close()
    if any(device.kind == "veth" for device in senders):
        return Mode.GENERIC  # in the driver, what it sends needs its peer's consent
    lossy = sorted({route.device for route in routes if loses_frames(route)})
    if lossy:
        log.info("generic XDP, since %s takes no frames that are redirected to it",
                 " and ".join(lossy))
        return Mode.GENERIC
    return None


def _senders(own: Device, found: Iterable[Device]) -> list[Device]:
    """What frames leave by that a program sends back: the interface, or a bond's slaves."""
    return [own, *(device for device in found if device.master == own.ifindex)]


def loses_frames(route: Route) -> bool:
    """Whether frames that native XDP redirects there vanish."""
    return bool(route.device) and not route.is_here and not route.takes_frames
