"""What a daemon waits for: descriptors that become ready, and times that come.

Effects live here, at the edge: the packet queue is one source, the kernel's news of routes another,
a timer a third. A data path never waits for any of them; what they bring is told to it.
"""

import selectors
import time
from collections.abc import Callable, Iterable
from typing import Protocol


class Source(Protocol):
    """A descriptor, a time, or both.

    deadline_s: when `on_deadline` wants to be called, by time.monotonic(); None: not at all.
    """

    @property
    def deadline_s(self) -> float | None: ...

    def fileno(self) -> int:
        """What to poll; -1: nothing."""

    def on_ready(self) -> None:
        """There is something to read, or an error. Must not block."""

    def on_deadline(self) -> None:
        """The time has come; afterwards there is another deadline, or none. Must not block."""


class Sources:
    """All sources of a loop.

    on_fault: called within the handler of an exception that a source has raised. Unless it raises
              the exception again, the other sources go on.
    """

    def __init__(
        self, sources: Iterable[Source], on_fault: Callable[[Source], None]
    ) -> None:
        self._sources = list(sources)
        self._on_fault = on_fault
        self._selector = selectors.DefaultSelector()
        for source in self._sources:
            if source.fileno() >= 0:
                self._selector.register(source, selectors.EVENT_READ, source)

    def wait(self, timeout_s: float) -> None:
        """Wait for anything to happen, and let its source act. timeout_s: for how long at most."""
        due_s = min((source.deadline_s for source in self._sources
                     if source.deadline_s is not None), default=None)
        if due_s is not None:
            timeout_s = max(0, min(timeout_s, due_s - time.monotonic()))
        for key, _ in self._selector.select(timeout_s):
            self._act(key.data, key.data.on_ready)
        if due_s is None:
            return
        now_s = time.monotonic()
        for source in self._sources:
            if source.deadline_s is not None and source.deadline_s <= now_s:
                self._act(source, source.on_deadline)

    def close(self) -> None:
        """Wait no more."""
        self._selector.close()

    def _act(self, source: Source, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # whatever it is, it is for the loop's owner to judge
            self._on_fault(source)
