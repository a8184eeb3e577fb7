"""How packets reach the backends: interface, MTU and Ethernet addresses, kept fresh.

The program asks no routing table. What the kernel would do is looked up here, and again whenever
the kernel says that links, routes or neighbours have changed. Packets that pass below the kernel do
not keep its neighbour entries alive, so these are made to be probed (RFC 4861 §7.3.3, as Linux does
it for ARP too).
"""

import errno
import socket
from collections.abc import Iterable
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

PROBE_MS = 10_000
CALM_MS = 200  # between two looks, where changes do not end
_GROUPS = 0x1 | 0x4 | 0x40  # linux/rtnetlink.h: RTMGRP_LINK, _NEIGH, _IPV4_ROUTE
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE .. PROBE, NOARP, PERMANENT
_LASTING = 0x40 | 0x80
_PROBE = 0x10
_DISCARD_PORT = 9


class NextHop(NamedTuple):
    """interface: its index, 0 where the way is not known. mtu: octets of an IP packet."""

    interface: int
    mtu: int
    destination: bytes
    source: bytes


UNKNOWN = NextHop(0, 0, bytes(6), bytes(6))


class NextHops:
    """Looks the ways to addresses up. Raises nothing: what cannot be found is UNKNOWN.

    Times are unix times in ms.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self._addresses = list(addresses)
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._events.bind((0, _GROUPS))
        self._events.setblocking(False)
        self._netlink = IPRoute()
        self._seen_ms = self._probed_ms = 0

    def are_stale(self, now_ms: int) -> bool:
        """Whether something has changed since they were looked up, or it is time for a probe."""
        if not 0 <= now_ms - self._probed_ms < PROBE_MS:
            return True
        return not 0 <= now_ms - self._seen_ms < CALM_MS and self._has_events()

    def look_up(self, now_ms: int) -> dict[str, NextHop]:
        """The way to each address."""
        self._has_events()
        self._seen_ms = now_ms
        probe = not 0 <= now_ms - self._probed_ms < PROBE_MS
        if probe:
            self._probed_ms = now_ms
        return {address: self._look_up(address, probe) for address in self._addresses}

    def close(self) -> None:
        """Close the netlink sockets."""
        self._events.close()
        self._netlink.close()

    def _has_events(self) -> bool:
        """Whether the kernel has told of changes since the last call."""
        found = False
        while True:
            try:
                self._events.recv(1)
            except BlockingIOError:
                return found
            except OSError as error:  # more than it could keep
                if error.errno != errno.ENOBUFS:
                    raise
            found = True

    def _look_up(self, address: str, probe: bool) -> NextHop:
        try:
            route = self._netlink.route("get", dst=address)[0]
            index = route.get_attr("RTA_OIF")
            gateway = route.get_attr("RTA_GATEWAY") or address
            link = self._netlink.get_links(index)[0]
            neighbours = self._netlink.get_neighbours(socket.AF_INET, dst=gateway, ifindex=index)
        except (NetlinkError, OSError, IndexError):
            return UNKNOWN
        found = next((each for each in neighbours if each["state"] & _USABLE), None)
        mac = found.get_attr("NDA_LLADDR") if found else None
        source = link.get_attr("IFLA_ADDRESS")
        if found is None or not mac or not source:
            _resolve(gateway)
            return UNKNOWN
        if probe and not found["state"] & _LASTING:
            self._probe(gateway, index, mac)
        return NextHop(index, link.get_attr("IFLA_MTU"), _octets(mac), _octets(source))

    def _probe(self, address: str, index: int, mac: str) -> None:
        """Have the kernel ask the neighbour whether it is still there."""
        try:
            self._netlink.neigh("change", dst=address, lladdr=mac, ifindex=index, state=_PROBE)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EPERM):
                raise


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _resolve(address: str) -> None:
    """Have the kernel look for a neighbour: an empty datagram to the port that discards all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.sendto(b"", (address, _DISCARD_PORT))
        except OSError:
            pass
