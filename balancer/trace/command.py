"""The command: what was asked for, and what is shown."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import IPv4Network
from typing import BinaryIO

from balancer.trace.client import Trace, TraceError, trace
from balancer.trace.decisions import HEAD, Decisions, Shown
from balancer.trace.messages import REASONS, Request
from common import __version__
from common.capture.pcapng import Writer
from common.engine import clock
from common.settings import COMMAND_LINE, ConfigError
from common.verdict import DropReason, Event

RATE = 1000
_WAIT_S = 1.0
_MOST_RATE = 100_000


def run(namespace: argparse.Namespace, queue: int) -> int:
    """Show decisions until enough is shown, or it is interrupted. Returns: the exit code.

    Raises: ConfigError; BrokenPipeError where nobody reads any more.
    """
    wanted = getattr(namespace, "reason", [])
    request = Request(_network(getattr(namespace, "client", "0.0.0.0/0")),
                      _reasons(wanted, "key" in namespace),
                      _number(namespace, "rate", RATE, _MOST_RATE), __version__)
    shown = _Output(namespace, frozenset(wanted))
    with ExitStack() as stack:
        pcap = getattr(namespace, "pcap", None)
        if pcap is not None:
            shown.capture = Writer(stack.enter_context(_opened(pcap)), "balancer",
                                   f"balancer trace {__version__}")
        try:
            _show(stack.enter_context(trace(queue, request)), namespace, shown)
        except TraceError as error:
            print(f"balancer: trace: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            pass
        finally:
            shown.end()
    return 0


def _show(going: Trace, namespace: argparse.Namespace, shown: "_Output") -> None:
    until_s = time.monotonic() + getattr(namespace, "for", float("inf"))
    welcome = going.welcome
    decisions = Decisions(welcome.services, getattr(namespace, "key", None),
                          clock.offset_ns())
    going.watch(sys.stdout.fileno())
    shown.begin()
    try:
        while (left_s := until_s - time.monotonic()) > 0:
            found = going.wait(min(_WAIT_S, left_s))
            if going.welcome is not welcome:
                welcome = going.welcome
                decisions.learn(welcome.services)
            for decision in found:
                for each in decisions.take(decision):
                    if not shown.show(each):
                        return
            shown.flush(going.lost)
    finally:
        shown.lost = going.lost


class _Output:
    """Where decisions are shown. lost: of how many there is no trace."""

    def __init__(self, namespace: argparse.Namespace, reasons: frozenset[str]) -> None:
        self.capture: Writer | None = None
        self.lost = 0
        self._is_json = namespace.json
        self._reasons = reasons
        self._most = _number(namespace, "count", 0, sys.maxsize)
        self._count = 0
        self._has_begun = False

    def begin(self) -> None:
        """The trace has begun."""
        self._has_begun = True
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        if not self._is_json:
            print(HEAD, flush=True)

    def show(self, each: Shown) -> bool:
        """Show a decision. Returns: whether more are wanted."""
        if self._reasons and each.decision.reason.value not in self._reasons:
            return True
        print(json.dumps(each.as_json()) if self._is_json else each.line())
        if self.capture:
            self.capture.add(each.time_ns, each.decision.packet, each.whole_len, each.sentence())
        self._count += 1
        if self._count == self._most:
            sys.stdout.flush()
        return self._count != self._most

    def flush(self, lost: int) -> None:
        """Let what was shown be seen. lost: as the attribute."""
        if lost > self.lost and not self._is_json:
            print(f"… {lost - self.lost} more, which are not shown: --rate bounds how many are")
        self.lost = lost
        sys.stdout.flush()

    def end(self) -> None:
        """To stderr, how many there were."""
        if self._has_begun:
            print(f"{self._count} decisions shown, {self.lost} lost", file=sys.stderr)


def _reasons(wanted: Sequence[str], has_key: bool) -> frozenset[Event | DropReason]:
    unknown = next((each for each in wanted if each not in REASONS), None)
    if unknown is not None:
        raise ConfigError(COMMAND_LINE, "--reason", unknown, f"one of {', '.join(REASONS)}")
    if not wanted:
        return frozenset(REASONS.values()) - {Event.NOT_OURS}
    # a flow's key is known by its handoff alone
    return frozenset(REASONS[each] for each in wanted) | ({Event.HANDOFF} if has_key else set())


def _network(text: str) -> IPv4Network:
    try:
        return IPv4Network(text, strict=False)
    except ValueError:
        raise ConfigError(COMMAND_LINE, "--client", text,
                          "an IPv4 address or network, as 192.0.2.0/24") from None


def _number(namespace: argparse.Namespace, name: str, default: int, most: int) -> int:
    value = int(getattr(namespace, name, default))
    if name in namespace and not 1 <= value <= most:
        raise ConfigError(COMMAND_LINE, f"--{name}", value, f"1 to {most}")
    return value


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "wb", buffering=0)  # what is shown is in it, whatever comes
    except OSError as error:
        raise ConfigError(COMMAND_LINE, "--pcap", path,
                          f"a file that can be written ({error.strerror})") from None
