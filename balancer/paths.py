"""The ways to the backends, as far as they are known: the next hop, the own address, the path MTU.

What the kernel's routing says is told by the daemon (balancer/routes.py). A path may be narrower
than its first link; that is learnt by measurement, or from a router's "fragmentation needed", and
forgotten after ten minutes, as the kernel does it (ip-sysctl.rst: mtu_expires), unless it is said
again. A service's MSS fits the smallest path to any of its backends.
"""

import logging
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import NamedTuple

LEAST_MTU = 576  # what every host takes (RFC 1122 §3.3.2): less is learnt from nobody
HEADERS_LEN = 40  # of IPv4 and TCP without options, which an MSS does not count (RFC 9293 §3.7.1)
LEARNT_MS = 600_000
_UNBOUNDED = 65535
log = logging.getLogger(__name__)


class NextHop(NamedTuple):
    """interface: its index, 0 where the way is not known. mtu: octets of an IP packet.

    is_here: whether it is the interface, or the bond, that clients' packets come in by.
    """

    interface: int
    mtu: int
    destination: bytes
    source: bytes
    is_here: bool = True


UNKNOWN = NextHop(0, 0, bytes(6), bytes(6))


class Route(NamedTuple):
    """What the kernel says of the way to an address.

    own_address: the source it would choose, 4 octets; empty where there is no way.
    mtu:         octets of an IP packet, of the first link or as the route says; 0: not known.
    hop:         UNKNOWN while the neighbour is not resolved.
    device:      the name of the interface. is_here: as in NextHop.
    takes_frames: whether frames that a program redirects there leave by it.
    next_hop:    the neighbour's address, 4 octets. is_silent: it was asked for in vain.
    """

    own_address: bytes
    mtu: int
    hop: NextHop
    device: str = ""
    is_here: bool = True
    takes_frames: bool = True
    next_hop: bytes = b""
    is_silent: bool = False


NO_ROUTE = Route(b"", 0, UNKNOWN)


class Path:
    """What is known of the path to a backend's address."""

    __slots__ = ("_expires_ms", "_learnt_mtu", "address", "route")

    def __init__(self, address: bytes) -> None:
        self.address = address
        self.route = NO_ROUTE
        self._learnt_mtu = _UNBOUNDED
        self._expires_ms = 0

    @property
    def mtu(self) -> int:
        """The largest IP packet that it is known to take, in octets."""
        return min(self.route.mtu or _UNBOUNDED, self._learnt_mtu)

    @property
    def own_address(self) -> bytes:
        """This host's address on the way there, 4 octets; empty: not known."""
        return self.route.own_address

    @property
    def hop(self) -> NextHop:
        """The next hop, for packets that the whole path takes."""
        hop = self.route.hop
        return hop._replace(mtu=min(hop.mtu, self.mtu)) if hop.interface else UNKNOWN

    def learn(self, mtu: int, now_ms: int) -> None:
        """Believe for ten minutes that the path takes no more than `mtu`."""
        if mtu <= self._learnt_mtu:
            self._learnt_mtu, self._expires_ms = mtu, now_ms + LEARNT_MS

    def forget(self) -> None:
        """Believe the route alone."""
        self._learnt_mtu = _UNBOUNDED

    def is_outdated(self, now_ms: int) -> bool:
        """Whether what was learnt was learnt too long ago."""
        return not 0 < self._expires_ms - now_ms <= LEARNT_MS


class Paths:
    """The paths to all backends, by address (4 octets).

    version: another one after each change of what they say.
    """

    def __init__(self, addresses: Iterable[bytes]) -> None:
        self._paths = {address: Path(address) for address in addresses}
        self._learnt: set[bytes] = set()
        self.version = 0

    def __iter__(self) -> Iterator[bytes]:
        """The addresses."""
        return iter(self._paths)

    def __getitem__(self, address: bytes) -> Path:
        return self._paths[address]

    @property
    def narrowest(self) -> int:
        """What all of them take, in octets of an IP packet."""
        return min((path.mtu for path in self._paths.values()), default=_UNBOUNDED)

    def mtu_to(self, address: bytes) -> int:
        """What the path to any address takes, as far as that is known."""
        path = self._paths.get(address)
        return path.mtu if path else _UNBOUNDED

    def add(self, address: bytes) -> None:
        """Have a path to this address, too."""
        self._paths.setdefault(address, Path(address))

    def is_known(self, address: bytes, to_hop: bool) -> bool:
        """Whether there is a way to an address, and if `to_hop` its next hop is known."""
        path = self._paths.get(address)
        return path is not None and bool(path.hop.interface if to_hop else path.own_address)

    def keep(self, addresses: Iterable[bytes]) -> None:
        """Have no paths but those to these addresses."""
        wanted = set(addresses)
        self._paths = {address: path for address, path in self._paths.items() if address in wanted}
        self._learnt &= wanted

    def set_routes(self, routes: dict[bytes, Route]) -> bool:
        """The kernel says these now. Returns: whether it said something else before."""
        changed = False
        for address, route in routes.items():
            path = self._paths.get(address)
            if path is not None and path.route != route:
                before = path.mtu
                path.route = route
                self._note(path, before)
                changed = True
        self.version += changed
        return changed

    def learn(self, address: bytes, mtu: int, now_ms: int) -> None:
        """The path to an address takes no more than `mtu` octets, by measurement or from a router.

        This is the one place where a measured MTU comes in. A smaller one than every host must take
        is nobody's honest word.
        """
        path = self._paths.get(address)
        if path is None:
            return  # it is no backend's any more
        before = path.mtu
        path.learn(max(mtu, LEAST_MTU), now_ms)
        self._learnt.add(address)
        self._note(path, before)

    def is_whole(self, address: bytes) -> None:
        """A packet as long as the route allows has arrived there, or may."""
        path = self._paths.get(address)
        if path is None:
            return
        before = path.mtu
        path.forget()
        self._learnt.discard(address)
        self._note(path, before)

    def expire(self, now_ms: int) -> None:
        """Forget what was learnt too long ago."""
        for address in list(self._learnt):
            if self._paths[address].is_outdated(now_ms):
                self.is_whole(address)

    def mss(self, offered: int, addresses: Iterable[bytes]) -> int:
        """The MSS that fits the smallest path to some backends. offered: as configured."""
        smallest = min(self._paths[address].mtu for address in addresses)
        return min(offered, max(smallest, LEAST_MTU) - HEADERS_LEN)

    def _note(self, path: Path, before: int) -> None:
        if path.mtu != before:
            self.version += 1
            level = logging.INFO if before < _UNBOUNDED else logging.DEBUG  # the first look, of all
            log.log(level, "the path to %s takes packets of %s", IPv4Address(path.address),
                    f"{path.mtu} bytes" if path.mtu < _UNBOUNDED else "a size not known")
