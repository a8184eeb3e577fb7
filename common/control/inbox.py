"""Calls from other threads, carried out in the loop's own, so that nothing there is read or changed
half-way. A turn of the loop does only some of them: packets wait for no more than that.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

_TURN_S = 0.001  # after which packets have their turn
R = TypeVar("R")


class Inbox:
    """A source of the loop (common/engine/sources.py)."""

    deadline_s: float | None = None

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def call(self, function: Callable[[], R]) -> "Future[R]":
        """Have a function called in the loop's thread. Returns: what it will have returned or
        raised. Until it is called, that can be cancelled.
        """
        future: Future[R] = Future()
        self._calls.put((function, future))
        os.eventfd_write(self._wake, 1)
        return future

    # --- as sources.Source ---

    def fileno(self) -> int:
        """As sources.Source."""
        return self._wake

    def on_ready(self) -> None:
        """As sources.Source."""
        os.eventfd_read(self._wake)
        until_s = time.monotonic() + _TURN_S
        while time.monotonic() < until_s:
            try:
                function, future = self._calls.get_nowait()
            except Empty:
                return
            if future.set_running_or_notify_cancel():
                _carry_out(function, future)
        os.eventfd_write(self._wake, 1)

    def on_deadline(self) -> None:
        """As sources.Source; there is none."""


def _carry_out(function: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        result = function()
    except Exception as error:  # it is for who asked
        future.set_exception(error)
    else:
        future.set_result(result)
