"""What a service manager and an administrator say to a daemon, and what it answers them."""

import logging
import os
import signal
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Signals:
    """What a daemon is asked by signals. Only noted here, acted on later.

    stop:   SIGTERM and SIGINT. hands_over: SIGUSR2 asks it to stop, but to leave in place what a
            successor will take over. reload: SIGHUP, of its configuration. report: SIGUSR1.

    From its making on, no such signal ends the process before its changes are undone.
    """

    def __init__(self) -> None:
        self.stop = False
        self.hands_over = False
        self.reload = False
        self.report = False
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        signal.signal(signal.SIGUSR1, self._on_report)
        signal.signal(signal.SIGUSR2, self._on_hand_over)

    def _on_stop(self, *_: object) -> None:
        self.stop = True

    def _on_hand_over(self, *_: object) -> None:
        self.stop = self.hands_over = True

    def _on_reload(self, *_: object) -> None:
        self.reload = True

    def _on_report(self, *_: object) -> None:
        self.report = True


def notify(state: str, waits: bool = True) -> None:
    """Tell systemd, if it started us (sd_notify(3)). state: e.g. `READY=1`.

    waits: until it has room for one more message; packets would wait as well.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(waits)
        try:
            channel.sendto(state.encode(), address)
        except OSError as error:
            log.warning("cannot notify systemd of %s: %s", state, error)


class Watchdog:
    """Tells systemd that packets are handled, as often as the unit's WatchdogSec asks for.

    Fed by the engine's loop alone: whatever stops that, stops this, and systemd then restarts the
    program (sd_watchdog_enabled(3)). Twice in the time that systemd allows.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        allowed_us = environment.get("WATCHDOG_USEC", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._interval_ms = int(allowed_us) // 2000 if allowed_us.isdecimal() and is_ours else 0
        self._next_ms = 0

    def feed(self, now_ms: int) -> None:
        """To be called at least ten times a second, after packets have been handled."""
        if not self._interval_ms or 0 < self._next_ms - now_ms <= self._interval_ms:
            return
        self._next_ms = now_ms + self._interval_ms
        notify("WATCHDOG=1", waits=False)
