"""The tracing process's end: decisions of both engines as they come."""

import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from operator import attrgetter

from balancer.offload.maps import MAX_BACKENDS
from balancer.trace.messages import (
    DECISION,
    LEASE_MS,
    LOST,
    MOST_WELCOME,
    PING,
    PING_S,
    REASONS,
    REFUSAL,
    WELCOME,
    Decision,
    Request,
    Welcome,
    parse_lost,
    path_of,
)
from common.bpf.btf import Layout
from common.bpf.maps import Map, RingBuffer
from common.bpf.objects import types_of
from common.verdict import Reason


class TraceError(Exception):
    """There is no trace, or none any more; says why."""


class Ring:
    """The fast engine's decisions. reasons: by its numbers."""

    def __init__(self, ring: int, counts: int, reasons: dict[int, Reason]) -> None:
        """ring, counts: descriptors, which are closed with it. Raises: BpfError."""
        types = types_of("balancer", "balancer")
        layout: Layout = types.layout("decision")
        self._head = layout.row("time_ns", "place", "reason", as_numbers=True)
        self._octets_off, self._len = layout.offset("octets"), layout.size
        self._reasons = reasons
        self._counts = Map(counts, None, types.layout("trace_count"))
        self._decisions = Map(ring)
        self._found: list[Decision] = []
        self._ring = RingBuffer(self._decisions, self._on_record)

    def fileno(self) -> int:
        """Readable when there are decisions."""
        return self._ring.fileno()

    def read(self) -> list[Decision]:
        """Those that are there."""
        self._ring.consume()
        found, self._found = self._found, []
        return found

    def lost(self) -> int:
        """How many there is no trace of."""
        return int(self._counts.lookup(bytes(4)).lost)

    def close(self) -> None:
        """Let go of it."""
        self._ring.close()
        self._decisions.close()
        self._counts.close()

    def _on_record(self, record: bytes) -> None:
        time_ns, place, number = self._head.unpack(record.ljust(self._len, b"\0"))
        self._found.append(Decision(time_ns, self._reasons[number], place % MAX_BACKENDS,
                                    record[self._octets_off:]))


class Trace:
    """A trace that has begun. welcome: what the balancer has said of itself."""

    def __init__(self, connection: socket.socket, welcome: Welcome, ring: Ring | None) -> None:
        self.welcome = welcome
        self._connection = connection
        self._ring = ring
        self._lost_by_socket = 0
        self._next_ping_s = 0.0
        self._watched = -1
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        if ring:
            self._poll.register(ring, select.POLLIN)

    @property
    def lost(self) -> int:
        """How many decisions there is no trace of: they were too many."""
        return self._lost_by_socket + (self._ring.lost() if self._ring else 0)

    def watch(self, descriptor: int) -> None:
        """Raise BrokenPipeError from `wait` when nobody reads this any more."""
        self._poll.register(descriptor, 0)
        self._watched = descriptor

    def wait(self, timeout_s: float) -> list[Decision]:
        """Wait for decisions. Returns: those that are there, in their order.

        Raises: TraceError where the balancer has ended it.
        """
        now_s = time.monotonic()
        if now_s >= self._next_ping_s:
            self._next_ping_s = now_s + PING_S
            try:
                self._connection.send(PING)
            except OSError:
                pass  # it is read below why
        timeout_s = min(timeout_s, self._next_ping_s - now_s)
        ready = self._poll.poll(max(0, timeout_s) * 1000)
        found = self._ring.read() if self._ring else []
        if any(descriptor == self._watched for descriptor, _ in ready):
            raise BrokenPipeError
        found += self._read()
        return sorted(found, key=attrgetter("time_ns"))

    def _read(self) -> Iterator[Decision]:
        while True:
            try:
                message = self._connection.recv(MOST_WELCOME)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            kind, text = message[:1], message[1:]
            if kind == DECISION:
                yield Decision.parse(text)
            elif kind == LOST:
                self._lost_by_socket = parse_lost(text)
            elif kind == WELCOME:  # services are others now
                self.welcome = Welcome.parse(text)
            else:
                raise TraceError(_words(kind, text))


@contextmanager
def trace(queue: int, request: Request) -> Iterator[Trace]:
    """Trace, until this is left. Raises: TraceError."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as connection:
        connection.settimeout(LEASE_MS / 1000)
        try:
            connection.connect(str(path_of(queue)))
            connection.send(request.pack())
            message, descriptors, _, _ = socket.recv_fds(connection, MOST_WELCOME, 2)
        except PermissionError:
            raise TraceError("this needs root") from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise TraceError(f"no balancer runs here with queue {queue}") from None
        except OSError as error:
            raise TraceError(f"the balancer does not answer ({error})") from None
        ring: Ring | None = None
        try:
            if message[:1] != WELCOME:
                raise TraceError(_words(message[:1], message[1:]))
            welcome = Welcome.parse(message[1:])
            if len(descriptors) == 2:
                ring_fd, counts_fd = descriptors
                descriptors = []
                ring = Ring(ring_fd, counts_fd, {
                    int(number): REASONS[value] for number, value in welcome.reasons.items()})
            connection.setblocking(False)
            yield Trace(connection, welcome, ring)
        finally:
            if ring:
                ring.close()
            for descriptor in descriptors:
                os.close(descriptor)


def _words(kind: bytes, text: bytes) -> str:
    return text.decode("utf-8", "replace") if kind == REFUSAL else "the balancer has ended"
