"""What the kernel says of the ways to the backends, kept fresh; and how large a packet they take.

Neither program nor data path asks a routing table. What the kernel would do is looked up here, in a
thread, and again whenever the kernel says that links, routes or neighbours have changed. Packets
that pass below the kernel do not keep its neighbour entries alive, so these are made to be probed
(RFC 4861 §7.3.3, as Linux does it for ARP too).
"""

import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable

from balancer.paths import NO_ROUTE, UNKNOWN, NextHop, Route
from common.engine.devices import Devices
from common.engine.netlink import ACK, Netlink, attributes_in
from common.engine.sources import Source
from common.engine.worker import Worker

PROBE_S = 10
CALM_S = 0.2  # between two looks, where changes do not end
_GROUPS = 0x1 | 0x4 | 0x40  # linux/rtnetlink.h: RTMGRP_LINK, _NEIGH, _IPV4_ROUTE
_GETROUTE, _NEWNEIGH, _GETNEIGH = 26, 28, 30
_REPLACE = 0x100
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 5, 7, 8
_RTAX_MTU = 2
_NDA_DST, _NDA_LLADDR = 1, 2
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # NUD_REACHABLE .. PROBE, NOARP, PERMANENT
_LASTING = 0x40 | 0x80
_FAILED = 0x20
_PROBE = 0x10
_MAC_LEN = 6
_DISCARD_PORT = 9
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg
_NEIGHBOUR = struct.Struct("=BBHiHBB")  # ndmsg
_U32 = struct.Struct("=I")
log = logging.getLogger(__name__)

Routes = dict[bytes, Route]


class RouteWatch:
    """Tells of the ways to some addresses whenever they may have changed; a source of the loop.

    on_routes: called in the loop with the way to each address.
    """

    def __init__(
        self, addresses: Iterable[bytes], on_routes: Callable[[Routes], None], interface: str
    ) -> None:
        """addresses: 4 octets each, those that there are at each look.

        interface: where clients' packets come in. Raises: OSError.
        """
        self._addresses = addresses
        self._on_routes = on_routes
        self._events = Netlink(groups=_GROUPS)
        self._table = Table(interface)
        self._worker: Worker[Routes | None] = Worker("looking routes up", self._on_looked_up)
        self._is_looking = self._is_stale = False
        self._next_probe_s = 0.0
        self._calm_s = 0.0
        self.deadline_s: float | None = 0.0

    @property
    def sources(self) -> list[Source]:
        """What the loop has to wait for."""
        return [self, self._worker]

    def follow(self, interface: str) -> None:
        """Clients' packets come in by an interface of this name now."""
        self._table.interface = interface

    def look_up(self) -> None:
        """Look everything up now, and wait for it: before there are packets."""
        self._next_probe_s = time.monotonic() + PROBE_S
        routes = self._look(list(self._addresses), probe=True)
        if routes is not None:
            self._on_routes(routes)

    def soon(self) -> None:
        """There are other addresses: look without waiting for news."""
        self._is_stale = True
        self._plan()

    # --- as sources.Source ---

    def fileno(self) -> int:
        """As sources.Source."""
        return self._events.fileno()

    def on_ready(self) -> None:
        """Something has changed."""
        self._events.heard()
        self._is_stale = True
        self._plan()

    def on_deadline(self) -> None:
        """Have the worker look."""
        now_s = time.monotonic()
        probe = now_s >= self._next_probe_s
        if probe:
            self._next_probe_s = now_s + PROBE_S
        self._is_looking, self._is_stale = True, False
        self._calm_s = now_s + CALM_S
        addresses = list(self._addresses)
        self._worker.start(lambda: self._look(addresses, probe))
        self._plan()

    def _look(self, addresses: list[bytes], probe: bool) -> Routes | None:
        """What is found; None after a fault: what was known is kept, and the watch goes on."""
        try:
            return self._table.look_up(addresses, probe)
        except Exception:
            log.exception("the ways to the backends cannot be looked up; those known are kept")
            return None

    def _on_looked_up(self, routes: Routes | None) -> None:
        self._is_looking = False
        self._plan()
        if routes is not None:
            self._on_routes(routes)

    def _plan(self) -> None:
        """Say when to look next: never while the last look is not over."""
        if self._is_looking:
            self.deadline_s = None
        else:
            self.deadline_s = self._calm_s if self._is_stale else self._next_probe_s


class Table:
    """Looks ways up, and waits for the kernel. What cannot be found is NO_ROUTE.

    Where the kernel does not answer, BlockingIOError is raised: that says nothing of a way.
    """

    def __init__(self, interface: str) -> None:
        """interface: where clients' packets come in. Raises: OSError."""
        self.interface = interface
        self._netlink = Netlink()
        self._devices = Devices()
        self._silent: set[bytes] = set()  # next hops that were asked for in vain

    def look_up(self, addresses: Iterable[bytes], probe: bool) -> Routes:
        """The way to each address. probe: have the kernel ask the neighbours whether they live."""
        here = self._here()
        return {address: self._look_up(address, here, probe) for address in addresses}

    def _here(self) -> set[int]:
        """The indices of the interface where packets come in, and of the bond that it is in."""
        try:
            device = self._devices.get(socket.if_nametoindex(self.interface))
            if device.master and self._devices.get(device.master).kind == "bond":
                return {device.ifindex, device.master}
            return {device.ifindex}
        except BlockingIOError:
            raise
        except OSError:
            return set()

    def _look_up(self, address: bytes, here: set[int], probe: bool) -> Route:
        try:
            route = self._netlink.ask(
                _GETROUTE, _ROUTE.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0),
                {_RTA_DST: address},
            )[0].attributes
            index = _U32.unpack(route[_RTA_OIF])[0]
            device = self._devices.get(index)
        except BlockingIOError:
            raise
        except (OSError, LookupError):
            return NO_ROUTE
        mtu = device.mtu
        metrics = attributes_in(route.get(_RTA_METRICS, b""))
        if _RTAX_MTU in metrics:
            mtu = min(mtu, _U32.unpack(metrics[_RTAX_MTU])[0])
        hop, gateway = UNKNOWN, b""
        if len(device.mac) == _MAC_LEN:
            gateway = route.get(_RTA_GATEWAY, address)
            mac = self._neighbour(gateway, index, probe)
            if mac:
                hop = NextHop(index, device.mtu, mac, device.mac, index in here)
        return Route(route.get(_RTA_PREFSRC, b""), mtu, hop, device.name, index in here,
                     device.takes_frames, gateway, gateway in self._silent)

    def _neighbour(self, address: bytes, index: int, probe: bool) -> bytes:
        """The Ethernet address of a neighbour; empty if it is not known, and then asked for."""
        try:
            found = self._netlink.ask(
                _GETNEIGH, _NEIGHBOUR.pack(socket.AF_INET, 0, 0, index, 0, 0, 0),
                {_NDA_DST: address},
            )[0]
        except BlockingIOError:
            raise
        except (OSError, LookupError):
            found = None
        state = _NEIGHBOUR.unpack(found.fixed)[4] if found else 0
        mac = found.attributes.get(_NDA_LLADDR, b"") if found else b""
        if not state & _USABLE or len(mac) != _MAC_LEN:
            if state & _FAILED:
                self._silent.add(address)
            _resolve(address)
            return b""
        self._silent.discard(address)
        if probe and not state & _LASTING:
            self._probe(address, index, mac)
        return mac

    def _probe(self, address: bytes, index: int, mac: bytes) -> None:
        """Have the kernel ask the neighbour whether it is still there."""
        try:
            self._netlink.ask(
                _NEWNEIGH, _NEIGHBOUR.pack(socket.AF_INET, 0, 0, index, _PROBE, 0, 0),
                {_NDA_DST: address, _NDA_LLADDR: mac}, _REPLACE | ACK,
            )
        except OSError as error:  # it has gone, or we have no right to
            log.debug("the neighbour %s cannot be probed: %s", socket.inet_ntoa(address), error)


def _resolve(address: bytes) -> None:
    """Have the kernel look for a neighbour: an empty datagram to the port that discards all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setblocking(False)
        try:
            probe.sendto(b"", (socket.inet_ntoa(address), _DISCARD_PORT))
        except OSError:
            pass
