"""Health checks on a real network: a source of the loop that sends them and hears the answers.

An answer's source is the VIP, an address of this host's own, so the kernel drops it as a martian;
a packet socket has seen it by then. What follows from results is reckoned elsewhere
(balancer/reckoner.py).
"""

import logging
import socket
import time
from collections.abc import Iterable
from random import Random

from balancer.datapath import Datapath
from balancer.health.monitor import Monitor
from balancer.reckoner import Reckoner
from balancer.services import ServiceState
from common.engine import clock, socket_filter
from common.engine.loop import Sender
from common.engine.socket_filter import EQUALS, LOAD_OCTET, LOAD_WORD
from common.wire.packet import TCP

_PAUSE_MS = 4  # so long, what becomes due waits for more: each turn of the loop has its price
_MOST_READ = 64  # packets, before others have their turn
_PACKET_LEN = 1 << 16
_BUFFER_OCTETS = 4 << 20
_ETH_P_IP = 0x0800  # linux/if_ether.h
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_PROTOCOL_OFF, _SOURCE_OFF = 9, 12
log = logging.getLogger(__name__)


class HealthWatch:
    """Checks the backends of a data path, and lets it choose by what is found."""

    def __init__(
        self, datapath: Datapath, sender: Sender, random: Random, reckoner: Reckoner
    ) -> None:
        """Raises: OSError."""
        self._reckoner = reckoner
        self._sender = sender
        self.monitor = self._monitor = Monitor(
            datapath.services, lambda: datapath.secrets, datapath.paths, clock.now_ms, random)
        self._services = datapath.services
        self._vips: set[bytes] = set()
        self._socket = answers_from(self._vips)
        self._listen()
        self._buffer = bytearray(_PACKET_LEN)
        self._calm_ms = 0.0
        datapath.observers.append(self._monitor.samples)

    def follow(self, changed: Iterable[ServiceState]) -> None:
        """Some services are new, or configured in another way."""
        self._monitor.follow(self._services)
        self._listen()
        self._monitor.changed.update(changed)
        self._follow()

    # --- as sources.Source ---

    @property
    def deadline_s(self) -> float | None:
        """As sources.Source."""
        return max(self._monitor.due_ms, self._calm_ms) / 1000

    def fileno(self) -> int:
        """As sources.Source."""
        return self._socket.fileno()

    def on_ready(self) -> None:
        """Read what may be answers."""
        now_ms = time.monotonic() * 1000
        view = memoryview(self._buffer)
        for _ in range(_MOST_READ):
            try:
                length = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:  # an interface has gone
                log.debug("reading answers to health checks: %s", error)
                break
            for packet in self._monitor.on_packet(bytes(view[:length]), now_ms):
                self._sender.send(packet)
        self._follow()

    def on_deadline(self) -> None:
        """Send what is due."""
        now_ms = time.monotonic() * 1000
        for packet in self._monitor.on_time(now_ms, clock.now_ms() + clock.offset_ms()):
            self._sender.send(packet)
        if self._monitor.due_ms > now_ms:  # else the next turn goes on
            self._calm_ms = now_ms + _PAUSE_MS
        self._follow()

    def _follow(self) -> None:
        """Have the shares reckoned that have changed."""
        while self._monitor.changed:
            self._reckoner.reckon(self._monitor.changed.pop())

    def _listen(self) -> None:
        """Hear TCP from the VIPs of services that are checked."""
        if self._vips != self._monitor.vips:
            self._vips = self._monitor.vips
            _hear(self._socket, self._vips)


def answers_from(vips: Iterable[bytes]) -> socket.socket:
    """A socket that hears TCP from the VIPs, on all interfaces. Raises: OSError."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK,
                         socket.htons(_ETH_P_IP))
    _hear(made, vips)
    return made


def _hear(made: socket.socket, vips: Iterable[bytes]) -> None:
    """Let a packet socket hear TCP from the VIPs, on all interfaces. Raises: OSError."""
    sources = sorted(set(vips))
    socket_filter.attach(made, [
        (LOAD_OCTET, 0, 0, _PROTOCOL_OFF), (EQUALS, 0, len(sources) + 1, TCP),
        (LOAD_WORD, 0, 0, _SOURCE_OFF), *socket_filter.one_of(sources, _PACKET_LEN),
    ])
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_OCTETS)
    except PermissionError:  # in a container
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_OCTETS)
