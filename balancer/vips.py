"""A VIP is on one host: asked before it is taken, and asked and watched afterwards (RFC 5227).

The probe is quicker than the RFC's, which is for networks full of hosts that are switched on at
once: three within 0.1 s, and a host that is there answers at once. It runs while the program
prepares itself. An address that this host has already needs none, so a restart waits for nothing.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from ipaddress import IPv4Address

from common.engine import host, socket_filter
from common.engine.devices import Devices
from common.engine.socket_filter import LOAD_WORD
from common.engine.sources import Source
from common.engine.worker import Worker
from common.settings import ConfigError
from common.wire import arp

CONFLICT = "vip_conflict"  # a kind of repair
DEFEND_S = 10.0  # RFC 5227 §1.1, DEFEND_INTERVAL
ASK_S, ASK_PACE_S = 3.0, 0.1  # between two rounds of questions who has the VIPs, and of many
_PROBES, _BETWEEN_S, _WAIT_S = 3, 0.05, 0.2  # for answers, from the first probe on
_MOST_READ = 64  # frames, before others have their turn
_BUFFER_LEN = 128
_OUTGOING = 4  # linux/if_packet.h: PACKET_OUTGOING
_MAC_LEN = 6
_MOST_VIPS = 250  # of which the kernel's filter knows; a jump has 8 bits
log = logging.getLogger(__name__)


class Probe:
    """Asks, in a thread, whether another host has one of some addresses."""

    def __init__(self, interface: str, vips: Iterable[IPv4Address]) -> None:
        self._interface = interface
        here = host.all_addresses()
        self._vips = {vip.packed for vip in vips if str(vip) not in here}
        self._found: dict[bytes, bytes] = {}  # VIP → MAC
        self._thread = threading.Thread(target=self._ask, name="probing VIPs", daemon=True)
        self._thread.start()

    def check(self, file: str) -> None:
        """Wait for the answers. Raises: ConfigError where another host has a VIP."""
        self._thread.join()
        for vip, mac in self._found.items():
            raise ConfigError(
                file, "vip", socket.inet_ntoa(vip),
                f"an address that no other host has: {mac.hex(':')} has it, on {self._interface}; "
                "if balancers are meant to share it, vip_shared = true")

    def _ask(self) -> None:
        if not self._vips:
            return
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
                link.bind((self._interface, arp.ETHERTYPE))
                mac = link.getsockname()[4]
                if len(mac) == _MAC_LEN and any(mac):  # Ethernet
                    self._talk(link, mac)
        except OSError as error:  # down, or gone: nobody can be asked
            log.warning("cannot ask on %s whether another host has a VIP: %s", self._interface,
                        error)

    def _talk(self, link: socket.socket, mac: bytes) -> None:
        begin_s = time.monotonic()
        for number in range(_PROBES):
            for vip in self._vips:
                link.send(arp.probe(mac, vip))
            is_last = number == _PROBES - 1
            self._hear(link, mac, begin_s + (_WAIT_S if is_last else (number + 1) * _BETWEEN_S))

    def _hear(self, link: socket.socket, mac: bytes, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            link.settimeout(left_s)
            try:
                frame, sender = link.recvfrom(_BUFFER_LEN)
            except TimeoutError:
                return
            heard = arp.parse(frame)
            if heard is None or sender[2] == _OUTGOING or heard.mac == mac:
                continue
            # a probe for it is somebody's who is about to take it as well (§2.1.1)
            is_probe = heard.operation == arp.REQUEST and not any(heard.sender)
            claimed = heard.target if is_probe else heard.sender
            if claimed in self._vips:
                self._found[claimed] = heard.mac


class Conflicts:
    """What to do about other hosts' words. Pure."""

    def __init__(self, vips: Collection[bytes]) -> None:
        """vips: 4 octets each."""
        self._next_s = dict.fromkeys(vips, float("-inf"))

    def are_due(self, vip: bytes, now_s: float) -> bool:
        """Whether a conflict is to be answered now: once in DEFEND_S (§2.4, c)."""
        if now_s < self._next_s.get(vip, float("inf")):
            return False
        self._next_s[vip] = now_s + DEFEND_S
        return True


class VipWatch:
    """Hears what is said of the VIPs, and defends them; a source of the loop.

    interface: where they are. count: called for each defence.
    """

    def __init__(
        self, interface: str, vips: Collection[IPv4Address], count: Callable[[], None]
    ) -> None:
        """Raises: OSError."""
        self.interface = interface
        self._count = count
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK,
            socket.htons(arp.ETHERTYPE))
        self._known: list[bytes] | None = None
        self.deadline_s: float | None = None
        self.follow(vips)
        self._worker: Worker[bool] = Worker("defending VIPs", self._on_done)

    def follow(self, vips: Iterable[IPv4Address]) -> None:
        """Defend these from now on. Raises: OSError."""
        known = sorted(vip.packed for vip in vips)[:_MOST_VIPS]
        if known != self._known:
            self._known, self._conflicts = known, Conflicts(known)
            _listen(self._socket, known)
            self._plan()

    @property
    def sources(self) -> list[Source]:
        """What the loop has to wait for."""
        return [self, self._worker]

    def fileno(self) -> int:
        """As sources.Source."""
        return self._socket.fileno()

    def on_ready(self) -> None:
        """As sources.Source."""
        for _ in range(_MOST_READ):
            try:
                frame, (interface, _, kind, *_) = self._socket.recvfrom(_BUFFER_LEN)
            except OSError:  # nothing more, or an interface has gone
                return
            heard = arp.parse(frame)
            if heard and kind != _OUTGOING and interface == self.interface \
                    and self._conflicts.are_due(heard.sender, time.monotonic()):
                self._worker.start(partial(_defend, interface, heard))

    def on_deadline(self) -> None:
        """Ask who has them."""
        self._worker.start(partial(_ask, self.interface, self._known or ()))
        self._plan()

    def _on_done(self, was_defended: bool) -> None:
        if was_defended:
            self._count()

    def _plan(self) -> None:
        count = len(self._known or ())
        self.deadline_s = time.monotonic() + max(ASK_S, count * ASK_PACE_S) if count else None


def _defend(interface: str, heard: arp.Arp) -> bool:
    """Tell all once more where a VIP is. Returns: False where there is no conflict."""
    vip = socket.inet_ntoa(heard.sender)
    if heard.mac in _own_macs() or vip not in host.addresses_of(interface):
        return False  # our own frame has come back, or the VIP is not here any more
    log.warning("VIP on another host: %s is also at %s; it is defended, once in %g s, but one of "
                "them has to give it up", vip, heard.mac.hex(":"), DEFEND_S)
    host.announce(interface, vip)
    return True


def _ask(interface: str, vips: Collection[bytes]) -> bool:
    """Ask whether another host has one that is here; the watch hears the answers.

    A host that asks for a VIP which it has not is about to take it (RFC 5227 §2.1.1). Returns:
    False, since nothing has been defended.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((interface, 0))
            mac = link.getsockname()[4]
            if len(mac) == _MAC_LEN and any(mac):  # Ethernet
                here = host.addresses_of(interface)
                for vip in vips:
                    if socket.inet_ntoa(vip) in here:
                        link.send(arp.probe(mac, vip))
    except OSError as error:  # down, or gone
        log.debug("cannot ask on %s whether another host has a VIP: %s", interface, error)
    return False


def _own_macs() -> set[bytes]:
    devices = Devices()
    try:
        return {device.mac for device in devices.all()}
    finally:
        devices.close()


def _listen(made: socket.socket, vips: Collection[bytes]) -> None:
    """Let a packet socket hear ARP from the VIPs, on all interfaces. Raises: OSError.

    One that is bound to an interface would hear no more when that has been made anew.
    """
    socket_filter.attach(made, [
        (LOAD_WORD, 0, 0, arp.SENDER_OFF), *socket_filter.one_of(vips, _BUFFER_LEN)])
