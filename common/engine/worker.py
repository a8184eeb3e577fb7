"""What may take its time is done in a thread; what comes of it arrives as an event of the loop.

Questions to the kernel can wait for locks that others hold, and files for their disk. Neither may
keep packets waiting.
"""

import logging
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

R = TypeVar("R")
log = logging.getLogger(__name__)


class Worker(Generic[R]):
    """A thread that does one job after the other; a source of the loop (common/engine/sources.py).

    on_done: called in the loop with what a job returned. A job that raises is logged.
    threads: where jobs wait for the network, more of them, each with a job of its own.
    """

    def __init__(self, name: str, on_done: Callable[[R], None], threads: int = 1) -> None:
        self._on_done = on_done
        self._jobs: SimpleQueue[Callable[[], R] | None] = SimpleQueue()
        self._results: SimpleQueue[R] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._name = name
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True)
                         for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def start(self, job: Callable[[], R]) -> None:
        """Have `job` done when those before it are."""
        self._jobs.put(job)

    def close(self) -> None:
        """Take no more jobs. Those that are being done are not waited for."""
        for _ in self._threads:
            self._jobs.put(None)

    def finish(self) -> None:
        """Take no more jobs, and wait for those that there are."""
        self.close()
        for thread in self._threads:
            thread.join()

    # --- as sources.Source ---

    deadline_s: float | None = None

    def fileno(self) -> int:
        """As sources.Source."""
        return self._wake

    def on_ready(self) -> None:
        """As sources.Source."""
        os.eventfd_read(self._wake)
        while True:
            try:
                result = self._results.get_nowait()
            except Empty:
                return
            self._on_done(result)

    def on_deadline(self) -> None:
        """As sources.Source; there is none."""

    def _work(self) -> None:
        while job := self._jobs.get():
            try:
                self._results.put(job())
            except Exception:
                log.exception("%s failed", self._name)
            else:
                os.eventfd_write(self._wake, 1)
