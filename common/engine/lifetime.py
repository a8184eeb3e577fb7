"""The kill switch: a daemon that ends by itself, as if it had been stopped."""

import logging
import time

from common.engine.signals import Signals

log = logging.getLogger(__name__)


class Lifetime:
    """A source of the loop."""

    def __init__(self, lifetime_ms: int, signals: Signals) -> None:
        self._lifetime_ms = lifetime_ms
        self._signals = signals
        self.deadline_s: float | None = time.monotonic() + lifetime_ms / 1000

    def fileno(self) -> int:
        """As sources.Source."""
        return -1

    def on_ready(self) -> None:
        """As sources.Source; there is nothing to read."""

    def on_deadline(self) -> None:
        """Stop."""
        self.deadline_s = None
        log.info("the lifetime of %g s is over", self._lifetime_ms / 1000)
        self._signals.stop = True
