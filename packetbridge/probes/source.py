"""The bridge's end of a doctor's questions: a UDP socket, as a source of the loop.

What comes beyond the budget of a tenth of a second is dropped in the kernel until the next one
begins, so a flood of questions takes no time from packets.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from ipaddress import IPv4Address

from common import __version__
from common.cluster.probe import QUESTION_LEN, Listener, Served, Sighting, Socket, Watch
from common.cluster.secrets import Secrets
from common.engine import socket_filter
from common.engine.diag import Diag, Listening, is_opening
from common.engine.socket_filter import EQUALS, LOAD_LEN, NOTHING, RETURN
from common.engine.sources import Source
from common.engine.worker import Worker
from packetbridge.config import Config
from packetbridge.offload.fast import Choice
from packetbridge.probes.answers import Answers
from packetbridge.probes.tap import Ends, Tap

_SLICE_S = 0.1
_MOST_READ = 64  # in a slice
_MOST_WAITING = 256  # for the thread
_FRESH_S = 0.2  # for how long the list of listeners is good
_IP_RECVTOS, _IP_RECVTTL = 13, 12  # linux/in.h
_BUFFER_OCTETS = 1 << 17
_UDP_LEN = 8
_ASKED = ((LOAD_LEN, 0, 0, 0), (EQUALS, 0, 1, _UDP_LEN + QUESTION_LEN),
          (RETURN, 0, 0, 0xFFFF), (RETURN, 0, 0, 0))
log = logging.getLogger(__name__)


class Known:
    """What the bridge knows of its services. foreign: servers that are not on this host."""

    def __init__(
        self, config: Config, choices: Callable[[], Sequence[Choice]],
        foreign: Collection[IPv4Address], own: bytes,
    ) -> None:
        self._choices = choices
        self.foreign = foreign
        self._diag = Diag()
        self._listeners: list[Listening] | None = None
        self._fresh_until_s = 0.0
        self.tap = Tap(config.interface, own)

    def services(self) -> list[Served]:
        """As they are now."""
        self._look()
        return [self._served(choice) for choice in self._choices()]

    def watched(self, watch: Watch) -> Sighting:
        """What came of a watch."""
        choice = next((each for each in self._choices() if each.service.dscp == watch.dscp), None)
        if choice is None:
            return Sighting()
        service, port = choice.service, choice.service.port
        try:
            seen = self.tap.look_out(Ends(watch.address, watch.port, port), time.monotonic())
            local = (service.vip, port) if choice.mode == "adopt" else (
                service.server, service.server_port)
            state = self._diag.state(local[0].packed, local[1], watch.address, watch.port)
        except OSError as error:
            log.debug("nothing can be watched for: %s", error)
            return Sighting()
        return seen._replace(socket=Socket.NONE if not state else Socket.OPENING
                             if is_opening(state) else Socket.OPEN)

    def _look(self) -> None:
        now_s = time.monotonic()
        if now_s < self._fresh_until_s:
            return
        self._fresh_until_s = now_s + _FRESH_S
        try:
            self._listeners = self._diag.listeners()
        except OSError as error:
            self._listeners = None
            log.debug("listeners cannot be seen: %s", error)

    def _served(self, choice: Choice) -> Served:
        service = choice.service
        served = Served(
            service.dscp, service.wscale, service.vip.packed, service.port, service.server.packed,
            service.server_port, choice.mode == "adopt", choice.engine == "fast",
            Listener.UNSEEN, reason=choice.reason)
        if service.server in self.foreign or self._listeners is None:
            return served
        at_port = [each for each in self._listeners if each.port == service.server_port]
        there = [each for each in at_port if each.address in (service.server.packed, bytes(4))]
        if not there:
            return served._replace(listener=Listener.NONE,
                                   elsewhere=at_port[0].address if at_port else bytes(4))
        found = max(there, key=lambda each: any(each.address))  # the closer match has it
        return served._replace(
            listener=Listener.MPTCP if found.is_mptcp else Listener.TCP,
            queue=min(found.queue, 0xFFFF), room=min(found.room, 0xFFFF))


class ProbeSource:
    """Answers questions at a port; a source of the loop (common/engine/sources.py).

    Answers are made in a thread: to ask the kernel, and to close a packet socket, takes its time.
    """

    def __init__(
        self, address: IPv4Address, port: int, known: Known, secrets: Callable[[], Secrets]
    ) -> None:
        """It hears nothing until `open`. Raises: OSError."""
        self._known = known
        self._end = str(address), port
        self._answers = Answers(secrets, known.services, known.watched, __version__,
                                os.uname().release)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        for option in (_IP_RECVTOS, _IP_RECVTTL):
            self._socket.setsockopt(socket.IPPROTO_IP, option, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_OCTETS)
        self._worker: Worker[float | None] = Worker("answering probes", self._on_answered)
        self._waiting = 0
        self._slice = -1
        self._left = _MOST_READ
        self._resumes_s: float | None = None
        self._expires_s: float | None = None
        self.deadline_s: float | None = None
        socket_filter.attach(self._socket, _ASKED)

    def open(self) -> None:
        """Listen. That it cannot be is no reason not to serve."""
        try:
            self._socket.bind(self._end)
        except OSError as error:
            log.warning("doctors get no answer: UDP port %d of %s cannot be had (%s); give "
                        "probe_port another number, here and at the balancers, or 0",
                        self._end[1], self._end[0], error.strerror)

    @property
    def sources(self) -> Sequence[Source]:
        """What the loop has to wait for."""
        return [self, self._worker]

    # --- as sources.Source ---

    def fileno(self) -> int:
        """As sources.Source."""
        return self._socket.fileno()

    def on_ready(self) -> None:
        """Have answered what has come."""
        number = int(time.monotonic() / _SLICE_S)
        if number != self._slice:
            self._slice, self._left = number, _MOST_READ
        while self._left > 0:
            self._left -= 1
            if not self._read_one():
                return
        socket_filter.attach(self._socket, NOTHING)
        self._drain()
        self._resumes_s = (number + 1) * _SLICE_S
        self._plan()

    def on_deadline(self) -> None:
        """Listen again, and look out no longer than is wanted."""
        now_s = time.monotonic()
        if self._resumes_s is not None and self._resumes_s <= now_s:
            self._resumes_s = None
            socket_filter.attach(self._socket, _ASKED)
        if self._expires_s is not None and self._expires_s <= now_s:
            self._expires_s = None
            self._start(self._expire)
        self._plan()

    def _plan(self) -> None:
        times = [each for each in (self._resumes_s, self._expires_s) if each is not None]
        self.deadline_s = min(times, default=None)

    def _read_one(self) -> bool:
        """Returns: whether there was anything."""
        try:
            octets, ancillary, _, asker = self._socket.recvmsg(QUESTION_LEN + 1, 128)
        except BlockingIOError:
            return False
        except OSError:  # an error about an answer
            return True
        values = {kind: value for level, kind, value in ancillary if level == socket.IPPROTO_IP}
        tos = values.get(socket.IP_TOS, b"\0")[0]
        ttl = int.from_bytes(values.get(socket.IP_TTL, b""), sys.byteorder) & 0xFF
        self._start(partial(self._answer, octets, tos, ttl, asker))
        return True

    def _drain(self) -> None:
        """What came before the filter is not wanted."""
        try:
            while True:
                self._socket.recv(1)
        except OSError:
            pass

    # --- in the thread ---

    def _start(self, job: Callable[[], None]) -> None:
        if self._waiting < _MOST_WAITING:
            self._waiting += 1
            self._worker.start(partial(self._do, job))

    def _do(self, job: Callable[[], None]) -> float | None:
        try:
            job()
        except Exception:
            log.exception("a probe is not answered")
        return self._known.tap.deadline_s

    def _on_answered(self, expires_s: float | None) -> None:
        self._waiting -= 1
        self._expires_s = expires_s
        self._plan()

    def _expire(self) -> None:
        self._known.tap.expire(time.monotonic())

    def _answer(self, octets: bytes, tos: int, ttl: int, asker: tuple[str, int]) -> None:
        answer = self._answers.on_datagram(octets, tos, ttl, int(time.monotonic() * 1000),
                                           time.time_ns() // 1_000_000)
        if answer is not None:
            try:
                self._socket.sendto(answer, asker)
            except OSError as error:
                log.debug("an answer to a probe cannot be sent: %s", error)
