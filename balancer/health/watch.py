"""Health checks on a real network: a source of the loop that sends them and hears the answers.

An answer's source is the VIP, an address of this host's own, so the kernel drops it as a martian;
a packet socket has seen it by then. What follows from results is reckoned in a thread: tables take
their time, and packets do not wait for them.
"""

import ctypes
import logging
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import NamedTuple

from balancer.datapath import Datapath
from balancer.health.monitor import Monitor
from balancer.services import Plan, ServiceState
from common.engine import clock
from common.engine.loop import Sender
from common.engine.sources import Source
from common.engine.worker import Worker
from common.wire.packet import TCP

_PAUSE_MS = 4  # so long, what becomes due waits for more: each turn of the loop has its price
_MOST_READ = 64  # packets, before others have their turn
_PACKET_LEN = 1 << 16
_BUFFER_OCTETS = 4 << 20
_ETH_P_IP = 0x0800  # linux/if_ether.h
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33  # asm-generic/socket.h
_SWITCH_S = 0.0005  # for how long one thread may keep others from running
_LOAD_OCTET, _LOAD_WORD, _EQUALS, _RETURN = 0x30, 0x20, 0x15, 0x06  # linux/bpf_common.h
_PROTOCOL_OFF, _SOURCE_OFF = 9, 12
_INSTRUCTION = struct.Struct("=HBBI")
_ADDRESS = struct.Struct("=HH16x")  # linux/if_packet.h: sockaddr_ll, of all interfaces
_LIBC = ctypes.CDLL(None, use_errno=True)
log = logging.getLogger(__name__)


class Reckoned(NamedTuple):
    """A plan for a service; None: our bug, and logged."""

    service: ServiceState
    plan: Plan | None


class HealthWatch:
    """Checks the backends of a data path, and lets it choose by what is found."""

    def __init__(self, datapath: Datapath, sender: Sender, random: Random) -> None:
        """Raises: OSError."""
        self._datapath = datapath
        self._sender = sender
        paths = datapath.paths
        self._monitor = Monitor(
            datapath.services, lambda: datapath.secrets,
            lambda address: paths[address].own_address, random)
        self._socket = socket.socket(  # of no protocol: it hears nothing yet
            socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        self._vips: set[bytes] = set()
        self._listen()
        self._buffer = bytearray(_PACKET_LEN)
        self._worker: Worker[Reckoned] = Worker("reckoning shares", self._on_reckoned)
        self._reckoning: set[ServiceState] = set()
        self._calm_ms = 0.0
        datapath.observers.append(self._monitor.samples)
        # whoever has a packet must not wait for the thread that makes a table
        sys.setswitchinterval(_SWITCH_S)

    def follow(self, changed: Iterable[ServiceState]) -> None:
        """Some services are new, or configured in another way."""
        self._monitor.follow(self._datapath.services)
        self._listen()
        self._monitor.changed.update(changed)
        self._follow()

    @property
    def sources(self) -> Sequence[Source]:
        """What the loop has to wait for."""
        return [self, self._worker]

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
        """Have the shares reckoned that have changed; of one service once at a time."""
        for service in self._monitor.changed - self._reckoning:
            self._monitor.changed.discard(service)
            self._reckoning.add(service)
            self._worker.start(partial(_reckon, service, self._datapath.plan(service)))

    def _listen(self) -> None:
        """Hear TCP from the VIPs of services that are checked."""
        if self._vips != self._monitor.vips:
            self._vips = self._monitor.vips
            _listen(self._socket, self._vips)

    def _on_reckoned(self, reckoned: Reckoned) -> None:
        self._reckoning.discard(reckoned.service)
        if reckoned.plan and not self._datapath.follow(reckoned.service, reckoned.plan):
            self._monitor.changed.add(reckoned.service)  # its backends are others now
        self._follow()


def _reckon(service: ServiceState, make: Callable[[], Plan]) -> Reckoned:
    try:
        return Reckoned(service, make())
    except Exception:
        log.exception("the shares of %s stay as they were", service.config.name)
        return Reckoned(service, None)


def _listen(made: socket.socket, vips: Iterable[bytes]) -> None:
    """Let a packet socket hear TCP from the VIPs, on all interfaces. Raises: OSError."""
    sources = sorted(set(vips))
    steps = [
        (_LOAD_OCTET, 0, 0, _PROTOCOL_OFF), (_EQUALS, 0, len(sources) + 1, TCP),
        (_LOAD_WORD, 0, 0, _SOURCE_OFF),
        *((_EQUALS, len(sources) - place, 0, int.from_bytes(vip))
          for place, vip in enumerate(sources)),
        (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _PACKET_LEN),
    ]
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*step) for step in steps))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                    struct.pack("@HP", len(steps), ctypes.addressof(code)))
    # socket.bind wants an interface
    end = _ADDRESS.pack(socket.AF_PACKET, socket.htons(_ETH_P_IP))
    if _LIBC.bind(made.fileno(), end, len(end)):
        raise OSError(ctypes.get_errno(), "cannot hear answers to health checks")
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_OCTETS)
    except PermissionError:  # in a container
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_OCTETS)
