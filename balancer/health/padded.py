"""Padded checks: beside the usual ones, as long as the paths should carry, not to be fragmented.

They say nothing of a backend's health, and cost it nothing: whatever answers, they have arrived. Of
each address one service's checks are padded, those of the first backend that passed one.
"""

import heapq
import logging
from collections.abc import Callable
from ipaddress import IPv4Address
from itertools import count
from typing import Protocol

from balancer.health.exchange import Exchange
from balancer.health.request import LEAST_PADDING, Outcome, Request
from balancer.health.width import Width, ladder
from balancer.paths import HEADERS_LEN, Paths
from balancer.pool.pool import Backend
from balancer.services import ServiceState
from common.wire.options import TIMESTAMPS_LEN
from common.wire.tcp import Segment

SENT_TIMES = 3  # within the time that a backend has: the network may lose some
_OPTIONS_LEN = 2 + TIMESTAMPS_LEN  # aligned by two NOPs
log = logging.getLogger(__name__)


class Padded:
    """A request of another length, whose answer is the same."""

    def __init__(self, request: Request, octets: bytes) -> None:
        self.octets = octets
        self._request = request

    def padded(self, length: int) -> bytes | None:
        """As Request."""
        return self._request.padded(length)

    def judge(self, answer: bytes, is_all: bool) -> Outcome | None:
        """As Request."""
        return self._request.judge(answer, is_all)


class Checked(Protocol):
    """What is needed of a backend that is checked. address: where it was when that began."""

    @property
    def service(self) -> ServiceState: ...
    @property
    def backend(self) -> Backend: ...
    @property
    def address(self) -> bytes: ...
    @property
    def request(self) -> Request: ...


Begin = Callable[[Checked, Request, int], Exchange | None]


class _Try:
    """The padded checks of an address. is_open: its latest was silent, and a short one may explain
    that.
    """

    __slots__ = ("due_ms", "exchange", "expires_ms", "is_open", "target", "width")

    def __init__(self, target: Checked, lengths: tuple[int, ...]) -> None:
        self.target = target
        self.width = Width(lengths)
        self.exchange: Exchange | None = None
        self.due_ms = self.expires_ms = 0.0
        self.is_open = False


class PaddedChecks:
    """All of them. Times are as of the monitor, besides `clock_ms`, the paths'."""

    def __init__(self, paths: Paths, clock_ms: Callable[[], int], begin: Begin) -> None:
        """begin: makes a check with this request, at a unix time in ms; None if it cannot be."""
        self._paths = paths
        self._clock_ms = clock_ms
        self._begin = begin
        self._tries: dict[bytes, _Try] = {}  # by address
        self._running: dict[bytes, _Try] = {}  # by the five-tuple of the answer
        self._due: list[tuple[float, int, _Try]] = []
        self._order = count()

    @property
    def due_ms(self) -> float:
        """When `on_time` has something to do."""
        return self._due[0][0] if self._due else float("inf")

    def note_short(self, target: Checked, is_passed: bool, now_ms: float) -> None:
        """A usual check has ended: it may explain a silence, or be reason to try."""
        found = self._tries.get(target.backend.address)
        if found and (found.target is not target or found.exchange):
            return
        if found and found.is_open:
            found.is_open = False
            if is_passed:
                self._note(found, False, now_ms)
        if not is_passed or (found and not found.width.is_due(now_ms)):
            return
        lengths = self._ladder(target)
        if not lengths:
            return
        if not found:
            found = self._tries[target.backend.address] = _Try(target, lengths)
        elif found.width.lengths != lengths:
            found.width = Width(lengths)
        self._plan(found, now_ms)

    def forget(self, target: Checked) -> None:
        """It is checked no more."""
        found = self._tries.get(target.address)
        if found and found.target is target:
            self._end(found)
            del self._tries[target.address]

    def on_time(self, now_ms: float, unix_ms: int) -> tuple[list[bytes], list[Backend]]:
        """What is due. Returns: packets, and those of whom a usual check is wanted at once."""
        packets: list[bytes] = []
        silent: list[Backend] = []
        while self._due and self._due[0][0] <= now_ms:
            due_ms, _, found = heapq.heappop(self._due)
            if found.due_ms != due_ms or self._tries.get(found.target.backend.address) is not found:
                continue
            if found.exchange is None:
                packets += self._start(found, now_ms, unix_ms)
            elif now_ms >= found.expires_ms:
                packets.append(found.exchange.reset())
                self._end(found)
                found.is_open = True
                silent.append(found.target.backend)
            else:
                packets.append(found.exchange.handoff)
                self._plan(found, min(now_ms + self._pause_ms(found), found.expires_ms))
        return packets, silent

    def on_segment(self, segment: Segment, now_ms: float) -> list[bytes]:
        """A segment that may answer one. Returns: packets to send."""
        found = self._running.get(segment.five_tuple)
        if found is None or found.exchange is None:
            return []
        exchange = found.exchange
        outcome, _ = exchange.on_segment(segment)
        if not outcome and not exchange.is_seen:
            return []
        self._end(found)
        self._note(found, True, now_ms)
        if found.width.is_due(now_ms):
            self._plan(found, now_ms)
        return [exchange.reset()]

    def _ladder(self, target: Checked) -> tuple[int, ...]:
        """The lengths that a service's clients may send, from the usual check's on."""
        service, request = target.service.config, target.request
        if not request.padded(len(request.octets) + LEAST_PADDING):
            return ()
        shortest = HEADERS_LEN + self._options_len(target) + len(request.octets) + LEAST_PADDING
        longest = min(self._paths[target.backend.address].route.mtu, service.mss + HEADERS_LEN)
        return ladder(shortest, longest)

    @staticmethod
    def _options_len(target: Checked) -> int:
        return _OPTIONS_LEN if target.service.config.timestamps else 0

    def _start(self, found: _Try, now_ms: float, unix_ms: int) -> list[bytes]:
        target = found.target
        length = found.width.length - HEADERS_LEN - self._options_len(target)
        octets = target.request.padded(length)
        exchange = self._begin(target, Padded(target.request, octets), unix_ms) if octets else None
        if exchange is None or exchange.key in self._running:
            return []  # the next usual check brings it up again
        found.exchange = exchange
        self._running[exchange.key] = found
        found.expires_ms = now_ms + target.service.config.check.timeout_ms
        self._plan(found, now_ms + self._pause_ms(found))
        return [exchange.handoff]

    def _end(self, found: _Try) -> None:
        if found.exchange:
            self._running.pop(found.exchange.key, None)
            found.exchange = None
        found.due_ms = float("inf")

    def _note(self, found: _Try, has_arrived: bool, now_ms: float) -> None:
        """One more is known of a path."""
        mtu = found.width.note(has_arrived, now_ms)
        if mtu is None:
            return
        address, longest = found.target.backend.address, found.width.lengths[-1]
        before = self._paths[address].mtu
        if mtu == longest:
            if before < longest:
                self._paths.is_whole(address)
            return
        self._paths.learn(address, mtu, self._clock_ms())
        self._plan(found, found.width.due_ms)  # before it is forgotten, however rare checks are
        if self._paths[address].mtu < before:
            log.warning("packets to %s that are longer than %d bytes vanish, and nobody says so: "
                        "something on the way is narrow, and does not send ICMP errors, or they "
                        "are filtered", IPv4Address(address), self._paths[address].mtu)

    def _pause_ms(self, found: _Try) -> float:
        return found.target.service.config.check.timeout_ms / SENT_TIMES

    def _plan(self, found: _Try, due_ms: float) -> None:
        found.due_ms = due_ms
        heapq.heappush(self._due, (due_ms, next(self._order), found))
