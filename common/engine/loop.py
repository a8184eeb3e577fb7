"""The portable engine: packets from a queue through a pure data path, effects carried out.

This is all that both daemons do at run time; what differs between them is
given: the data path, the way out, and further sources of events beside the
queue (common/engine/sources.py).

Every packet passes `handle`, so that is lean: nothing is logged, nothing looked
up that could be at hand.
"""

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from common.cluster.cookie import Secrets
from common.counters import Counters, Sample
from common.engine import clock
from common.engine.log import fields
from common.engine.narrator import narrated
from common.engine.observation import Observation
from common.engine.queue import PacketQueue, is_truncated
from common.engine.remedies import Remedies
from common.engine.signals import Signals, Watchdog, notify
from common.engine.sources import Source, Sources
from common.metrics import PACKETS_LOST, SEND_FAILURES
from common.verdict import Action, DropReason, Verdict

TICK_MS = 100
_FAULT_LOG_MS = 1000
_SET_MS = 1000  # a clock that is slewed moves by less in a tick
log = logging.getLogger(__name__)


class Datapath(Protocol):
    """What both programs' data paths are."""

    counters: Counters
    secrets: Secrets
    clock_offset_ms: int

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict: ...
    def on_tick(self, now_ms: int) -> list[bytes]: ...
    def on_too_big(self, packet: bytes, mtu: int, now_ms: int) -> list[bytes]: ...
    def collect(self) -> None: ...
    def samples(self) -> list[Sample]: ...


class Sender(Protocol):
    """The way out, as queue.RawSender."""

    @property
    def failures(self) -> int: ...

    def send(self, packet: bytes) -> int: ...
    def say_failures(self) -> None: ...


class Engine:
    """Runs a data path on an NFQUEUE until it is asked to stop."""

    def __init__(
        self, datapath: Datapath, queue_number: int, sender: Sender, signals: Signals,
        reload: Callable[[], None] = lambda: None, sources: Sequence[Source] = (),
        observers: Sequence[Callable[[], list[Sample]]] = (),
        observation: Observation | None = None,
    ) -> None:
        """reload: called when it is asked to read its configuration anew.

        sources: what else happens, besides packets. observers: what else there is to be seen.
        observation: who sees the verdicts. Raises: queue.QueueError.
        """
        self.counters = datapath.counters
        self.state = "starting"  # then `ready`, `stopping`
        self.line = ""  # what was said when it was ready
        self._datapath = datapath
        self._sender = sender
        self._signals = signals
        self._reload = reload
        self._observers = observers
        self._tick = 0  # the number of the current tenth of a second
        self._next_log_ms = 0
        self._unlogged_faults = 0
        self._observation = observation or Observation()
        self._remedies = Remedies()
        self._queue = PacketQueue(queue_number, self._make_handler())
        self._observation.bind(lambda: self._queue.handle_by(self._make_handler()))
        self._sources = Sources([self._queue, *sources], self._on_source_fault)

    def run(self, ready: str) -> None:
        """Handle packets until asked to stop. ready: the line to log once they are handled."""
        # Flows are linked without cycles (common/flow/memory.py), so reference counts free them;
        # the collector would only walk a million of them again and again.
        gc.collect()
        gc.disable()
        self.keep_time()  # the first packets may wait already, and a cookie needs it
        self._datapath.collect()
        self._remedies.begin(self.counters)
        log.info("%s", ready, extra=fields(event="ready"))
        self.state, self.line = "ready", ready
        notify("READY=1")
        signals, watchdog = self._signals, Watchdog()
        while not signals.stop:
            self._sources.wait((TICK_MS - clock.now_ms() % TICK_MS) / 1000)
            now_ms = clock.now_ms()
            if now_ms // TICK_MS != self._tick:
                self._on_tick(now_ms)
            watchdog.feed(now_ms)
            if signals.reload:
                signals.reload = False
                self._reload()
            if signals.report:
                signals.report = False
                self.log_counters()
        self.state = "stopping"
        notify("STOPPING=1")

    def keep_time(self) -> None:
        """Tell the data path what unix time is, and say when somebody has set it."""
        offset_ms = clock.offset_ms()
        known_ms = self._datapath.clock_offset_ms
        if known_ms and abs(offset_ms - known_ms) >= _SET_MS:
            log.warning("the clock was set by %+.1f s; handshakes under way fail, if that is more "
                        "than a minute, and flows continue", (offset_ms - known_ms) / 1000)
        self._datapath.clock_offset_ms = offset_ms

    def send_all(self, packets: list[bytes]) -> None:
        """Send packets that answer no packet at hand."""
        for packet in packets:
            self._sender.send(packet)

    def samples(self) -> list[Sample]:
        """What there is to be seen besides `counters`: the data path's, and the engine's own."""
        queue_full, socket_full = self._queue.losses()
        return [
            *self._datapath.samples(),
            PACKETS_LOST.at(queue_full, "queue"),
            PACKETS_LOST.at(socket_full, "socket"),
            SEND_FAILURES.at(self._sender.failures),
            *(sample for observer in self._observers for sample in observer()),
        ]

    def log_counters(self) -> None:
        """Log all that is counted, in one line."""
        self._datapath.collect()
        counts = [f"{reason}={count}" for reason, count in self.counters.items()]
        counts += map(str, self.samples())
        log.info("counters: %s", " ".join(counts))

    def close(self) -> None:
        """Give the queue back; its packets are dropped while its rules stand."""
        self.log_counters()
        self._sources.close()
        self._queue.close()

    def _make_handler(self) -> Callable[[bytes], bool]:
        on_packet = self._observation.observed(narrated(self._datapath.on_packet))
        send = self._sender.send
        clock_ns, passed = clock.now_ns, Action.PASS

        def handle(packet: bytes) -> bool:
            now_ms = clock_ns() // 1_000_000
            if now_ms // TICK_MS != self._tick:
                self._queue.leave()
            try:
                if is_truncated(packet):
                    self.counters[DropReason.TRUNCATED] += 1
                    return False
                verdict = on_packet(packet, now_ms)
                for made in verdict.packets:
                    mtu = send(made)
                    if mtu:
                        self.send_all(self._datapath.on_too_big(packet, mtu, now_ms))
                return verdict.action is passed
            except Exception:  # our bug; one packet must not end the flows of all others
                self._on_fault()
                return False

        return handle

    def _on_tick(self, now_ms: int) -> None:
        self._tick = now_ms // TICK_MS
        self.keep_time()
        self._sender.say_failures()
        self._remedies.on_tick(self.counters, now_ms)
        try:
            self.send_all(self._datapath.on_tick(now_ms))
        except Exception:
            self._on_fault()

    def _on_source_fault(self, source: Source) -> None:
        """Without the queue there is nothing to do here; all else is a fault like any other."""
        if source is self._queue:
            raise
        self._on_fault()

    def _on_fault(self) -> None:
        """Count a fault of ours, and log it unless one was logged within the last second."""
        self.counters[DropReason.INTERNAL_ERROR] += 1
        now_ms = clock.now_ms()
        if self._next_log_ms - _FAULT_LOG_MS <= now_ms < self._next_log_ms:
            self._unlogged_faults += 1
            return
        self._next_log_ms = now_ms + _FAULT_LOG_MS
        log.exception("an internal error lost a packet or an event (%d more since the "
                      "last message)",
                      self._unlogged_faults)
        self._unlogged_faults = 0
