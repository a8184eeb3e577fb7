"""The portable engine: packets from a queue through a pure data path, effects carried out.

This is all that both daemons do at run time; what differs between them is
given: the data path, which sender a packet leaves by, and the host's changes.
"""

import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Protocol

from common.counters import Counters, Sample
from common.queue import COPY_LEN, PacketQueue, RawSender
from common.verdict import DROP, Action, DropReason, Verdict

TICK_MS = 100
_LOGGED_ERRORS = 10
log = logging.getLogger(__name__)


class Datapath(Protocol):
    """What both programs' data paths are."""

    counters: Counters

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict: ...
    def on_tick(self, now_ms: int) -> list[bytes]: ...
    def on_too_big(self, packet: bytes, mtu: int, now_ms: int) -> list[bytes]: ...
    def samples(self) -> list[Sample]: ...


def clock_ms() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


class Engine:
    """Runs a data path on an NFQUEUE until SIGTERM or SIGINT.

    choose_sender: the sender for a packet, by its destination.
    """

    def __init__(
        self, datapath: Datapath, queue_number: int, choose_sender: Callable[[bytes], RawSender]
    ) -> None:
        """Raises: queue.QueueError."""
        self._datapath = datapath
        self._choose_sender = choose_sender
        self._stopping = False
        self._logged_errors = 0
        self._queue = PacketQueue(queue_number, self._on_queued)

    def run(self, ready: str) -> None:
        """Handle packets until told to stop. ready: the line to log once packets are handled."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._log_counters)
        # Flows are linked without cycles (common/flow.py), so reference counts free them; the
        # collector would only walk a million of them again and again.
        gc.collect()
        gc.disable()
        poll = select.poll()
        poll.register(self._queue.fileno(), select.POLLIN)
        log.info("%s", ready)
        notify("READY=1")
        next_tick_ms = clock_ms() + TICK_MS
        while not self._stopping:
            wait_ms = min(max(next_tick_ms - clock_ms(), 0), TICK_MS)
            if poll.poll(wait_ms):
                self._queue.drain()
            now_ms = clock_ms()
            if now_ms >= next_tick_ms or next_tick_ms - now_ms > TICK_MS:
                self.send_all(self._datapath.on_tick(now_ms))
                next_tick_ms = now_ms + TICK_MS
        notify("STOPPING=1")

    def send_all(self, packets: list[bytes]) -> None:
        """Send packets that answer no packet at hand."""
        for packet in packets:
            self._choose_sender(packet).send(packet)

    def close(self) -> None:
        """Give the queue back; its packets are dropped while its rules stand."""
        self._queue.close()
        self._log_counters()

    def _on_queued(self, packet: bytes) -> bool:
        if len(packet) >= COPY_LEN:
            self._datapath.counters[DropReason.TRUNCATED] += 1
            return False
        try:
            verdict = self._datapath.on_packet(packet, time.time_ns() // 1_000_000)
        except Exception:  # our bug; one packet must not end the flows of all others
            verdict = self._on_bug()
        for made in verdict.packets:
            mtu = self._choose_sender(made).send(made)
            if mtu:
                self.send_all(self._datapath.on_too_big(packet, mtu, clock_ms()))
        return verdict.action is Action.PASS

    def _on_bug(self) -> Verdict:
        self._datapath.counters[DropReason.INTERNAL_ERROR] += 1
        self._logged_errors += 1
        if self._logged_errors <= _LOGGED_ERRORS:
            log.exception("a packet was dropped by a fault of this program")
        return DROP[DropReason.INTERNAL_ERROR]

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _log_counters(self, *_: object) -> None:
        counts = " ".join(f"{reason}={count}" for reason, count in self._datapath.counters.items())
        gauges = " ".join(
            f"{sample.name}={sample.value:g}" for sample in self._datapath.samples()
            if not sample.labels
        )
        log.info("counters: %s %s queue_overruns=%d", counts, gauges, self._queue.overruns)


def notify(state: str) -> None:
    """Tell systemd, if it started us (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", state, error)
