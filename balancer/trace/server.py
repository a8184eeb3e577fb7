"""The balancer's end of `balancer trace`: a socket, and while somebody has it, decisions.

The fast engine's come from a program that stands in for the usual one meanwhile; who traces reads
them from its ring. The portable engine's are sent by the socket. Both end when the connection does,
however its other end has died, or when nothing is heard from there for LEASE_MS. One traces at a
time.
"""

import logging
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from balancer.config import Service
from balancer.datapath import Datapath
from balancer.offload.offload import ProgramOffload
from balancer.offload.tracing import Tracing
from balancer.trace.messages import (
    LEASE_MS,
    MOST_OCTETS,
    PING,
    REFUSAL,
    Request,
    ServiceWords,
    Welcome,
    pack_lost,
    path_of,
)
from balancer.trace.portable import Telling
from common import __version__
from common.bpf import BpfError, build
from common.engine import clock
from common.engine.observation import Observation
from common.engine.sources import Source
from common.engine.worker import Worker
from common.verdict import Verdict

_UCRED = struct.Struct("=iII")
log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """The program that tells, for a client; or why there is none."""

    client: "Client"
    tracing: Tracing | None
    fault: str = ""


class Client:
    """Who traces. telling: once it does. services: those that it has been told of.

    until_s: it is taken for dead then; time.monotonic().
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid, self.uid, _ = _UCRED.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.request: Request | None = None
        self.telling: Telling | None = None
        self.tracing: Tracing | None = None
        self.services: Sequence[Service] = ()
        self.until_s = 0.0
        self.renew()

    def renew(self) -> None:
        """It lives."""
        self.until_s = time.monotonic() + LEASE_MS / 1000
        if self.tracing:
            self.tracing.allow_until(clock.now_ms() + LEASE_MS)

    def say(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message, unless it is gone or does not read."""
        try:
            socket.send_fds(self.connection, [message], descriptors)
        except OSError as error:
            log.debug("to the tracing process %d: %s", self.pid, error)


class TraceServer:
    """Lets one process at a time see what is decided."""

    def __init__(
        self, queue: int, datapath: Datapath, observation: Observation,
        offload: ProgramOffload | None,
    ) -> None:
        """Raises: OSError."""
        self._path = path_of(queue)
        self._datapath = datapath
        self._observation = observation
        self._offload = offload
        self._listener: socket.socket | None = None
        self._client: Client | None = None
        self._poll = select.epoll()
        self._worker: Worker[Loaded] = Worker("loading the program for traces", self._on_loaded)

    @property
    def sources(self) -> Sequence[Source]:
        """What the loop has to wait for."""
        return [self, self._worker]

    def open(self) -> None:
        """Listen. Where that cannot be, there are no traces, and a line in the log."""
        try:
            self._path.unlink(missing_ok=True)  # a killed one's; the queue is ours by now
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._listener = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            os.fchmod(self._listener.fileno(), 0o600)  # as bind makes the file
            self._listener.bind(str(self._path))
            self._listener.listen(1)
            self._poll.register(self._listener, select.EPOLLIN)
        except OSError as error:
            log.warning("`balancer trace` will not work: %s: %s", self._path, error)

    def close(self) -> None:
        """Let the usual program have the packets, and listen no more."""
        self._end("the balancer ends")
        if self._listener:
            self._path.unlink(missing_ok=True)
            self._listener.close()
        self._worker.close()
        self._poll.close()

    # --- as sources.Source ---

    @property
    def deadline_s(self) -> float | None:
        """As sources.Source."""
        return self._client.until_s if self._client else None

    def fileno(self) -> int:
        """As sources.Source."""
        return self._poll.fileno()

    def on_ready(self) -> None:
        """Somebody comes, says something, or is gone."""
        for descriptor, _ in self._poll.poll(0):
            if self._listener and descriptor == self._listener.fileno():
                self._accept(self._listener)
            elif self._client and descriptor == self._client.connection.fileno():
                self._read(self._client)

    def on_deadline(self) -> None:
        """Nothing was heard for too long."""
        self._end(f"nothing was heard from this process for {LEASE_MS // 1000} s")

    # --- what happens ---

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it is gone already
            return
        connection.setblocking(False)
        client = Client(connection)
        if client.uid not in (0, os.geteuid()):
            connection.close()
        elif self._client:
            client.say(REFUSAL + b"process %d traces already" % self._client.pid)
            connection.close()
        else:
            self._client = client
            self._poll.register(connection, select.EPOLLIN)

    def _read(self, client: Client) -> None:
        try:
            message = client.connection.recv(MOST_OCTETS)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._end()
        elif client.request:
            if message == PING and client.telling:
                client.renew()
                client.say(pack_lost(client.telling.lost))
                if client.services != self._services():
                    self._welcome(client, {})
        else:
            self._on_request(client, message)

    def _on_request(self, client: Client, message: bytes) -> None:
        try:
            client.request = request = Request.parse(message)
        except ValueError as error:
            self._end(str(error))
            return
        if request.version != __version__:
            self._end(f"the balancer has version {__version__}, and this is {request.version}; "
                      "restart the balancer")
        elif self._offload and self._offload.is_live:
            self._worker.start(partial(_load, client, self._offload, request))
        else:
            self._begin(client, None)

    def _on_loaded(self, loaded: Loaded) -> None:
        client, tracing = loaded.client, loaded.tracing
        if client is not self._client:
            if tracing:
                tracing.close()
        elif tracing is None:
            self._end(loaded.fault)
        else:
            self._begin(client, tracing)

    def _begin(self, client: Client, tracing: Tracing | None) -> None:
        assert client.request is not None
        client.tracing = tracing
        client.renew()
        client.telling = Telling(client.request, self._datapath.services, client.connection)
        reasons: dict[str, str] = {}
        if tracing and self._offload:
            reasons = {str(number): reason.value for number, reason in tracing.reasons.items()}
            try:
                self._offload.program.stand_in(tracing.program)
            except BpfError as error:
                self._end(str(error))
                return
        self._welcome(client, reasons, tracing.descriptors if tracing else ())
        self._observation.begin(self._observe)
        log.info("process %d traces %s", client.pid, client.request.client)

    def _end(self, why: str = "") -> None:
        """End a trace, if there is one. why: for the other end, if that is there."""
        client, self._client = self._client, None
        if client is None:
            return
        if client.telling:
            self._observation.end()
            log.info("process %d traces no more", client.pid)
        if client.tracing and self._offload:
            try:
                self._offload.program.stand_in(None)
            except BpfError as error:  # it tells nothing any more, but takes its time
                log.error("the program for traces stays in place until a restart: %s", error)
            client.tracing.close()
        if why:
            client.say(REFUSAL + why.encode())
        self._poll.unregister(client.connection)
        client.connection.close()

    def _observe(self, packet: bytes, verdict: Verdict) -> None:
        """As observation.Observer. A fault here is ours, and ends the trace, not the packet."""
        if not self._client or not self._client.telling:
            return
        try:
            self._client.telling.on_verdict(packet, verdict)
        except Exception:
            log.exception("the trace ends by an internal error")
            self._end("an internal error; the balancer's log has more")

    def _welcome(
        self, client: Client, reasons: dict[str, str], descriptors: Sequence[int] = ()
    ) -> None:
        """Say what there is; once more, where services have become others."""
        client.services = self._services()
        client.say(Welcome([
            ServiceWords(each.name, str(each.vip), each.port, str(each.key), str(each.fallback),
                         {str(backend.id): str(backend.address) for backend in each.backends})
            for each in client.services
        ], reasons).pack(), descriptors)

    def _services(self) -> list[Service]:
        return [service.config for service in self._datapath.services]


def _load(client: Client, offload: ProgramOffload, request: Request) -> Loaded:
    """In the worker's thread: it takes a third of a second."""
    try:
        tracing = Tracing(offload.program.object, request.client, request.reasons, request.rate)
    except (OSError, build.BuildError) as error:
        return Loaded(client, None, str(error))
    return Loaded(client, tracing)
