"""`top`: what flows now, in the terminal, by what the control socket tells again and again.

Rates are differences of two looks, over the time between the moments at which the daemon had
counted: the fast engine's counts are a second old at most.
"""

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from balancer.tools.words import found_by
from common.control.client import Client, NoAnswer
from common.control.commands import counted, lasting

_WIDE = 160  # columns, where nobody sees them
_MOST_REASONS = 12
SORTS = {"n": "name", "s": "state", "f": "flows", "h": "new/s", "b": "bytes/s",
         "u": "unanswered", "c": "check"}
_STYLES = {"up": "green", "down": "bold red", "draining": "yellow", "leaving": "yellow",
           "disabled": "magenta"}
Key = tuple[str, int]


class Look(NamedTuple):
    """What was seen at once. seconds: of when it was counted, by the daemon's clock."""

    seconds: float
    status: dict[str, Any]
    services: list[dict[str, Any]]
    backends: list[dict[str, Any]]
    reasons: dict[str, int]


def look(client: Client) -> Look:
    """Ask. Raises: NoAnswer."""
    found = client.get("backends")
    return Look(found["seconds"], client.get("status"), client.get("services")["services"],
                found["backends"], client.get("reasons"))


class View:
    """Two looks, and what lies between them. missed: why there was no later one; else empty."""

    def __init__(self, now: Look) -> None:
        self._before = self._now = now
        self.missed = ""
        self.sort = "n"
        self.reverse = False

    def add(self, now: Look) -> None:
        """Another look; the daemon may not have counted since."""
        if now.seconds > self._now.seconds:
            self._before = self._now
        self._now, self.missed = now, ""

    def press(self, key: str) -> None:
        """Sort by something else, or the other way round."""
        if key == "r":
            self.reverse = not self.reverse
        elif key in SORTS:
            self.sort = key

    def rates(self) -> tuple[dict[Key, tuple[float, float]], dict[str, float]]:
        """New flows and bytes a second by backend, and packets a second by reason."""
        span_s = self._now.seconds - self._before.seconds
        if span_s <= 0:
            return {}, {}
        before = {(each["service"], each["id"]): each for each in self._before.backends}
        backends = {}
        for each in self._now.backends:
            old = before.get((each["service"], each["id"]))
            if old and each["handoffs"] >= old["handoffs"]:
                backends[each["service"], each["id"]] = (
                    (each["handoffs"] - old["handoffs"]) / span_s,
                    (each["bytes"] - old["bytes"]) / span_s)
        reasons = {name: (count - self._before.reasons.get(name, 0)) / span_s
                   for name, count in self._now.reasons.items()}
        return backends, reasons

    def render(self) -> Group:
        """The tables."""
        backends, reasons = self.rates()
        status = self._now.status
        head = Text.assemble(
            ("balancer ", "bold"), f"{status['state']} for {lasting(status['uptime_seconds'])}, "
            f"{status['flows']:,} of {status['max_flows']:,} flows, "
            f"backends: {counted(status['backends'])}")
        if self.missed:
            head.append(f"\nthese figures are old: {self.missed}", "bold red")
        return Group(head, Text(), self._services(backends), Text(), self._backends(backends),
                     Text(), _reasons(reasons))

    def _services(self, rates: dict[Key, tuple[float, float]]) -> Table:
        table = _table(("service", "vip", "key", "scheduler"), ("flows", "new/s", "bytes/s"),
                       ("backends",))
        for each in self._now.services:
            own = [rate for (name, _), rate in rates.items() if name == each["name"]]
            table.add_row(Text(each["name"]), f"{each['vip']}:{each['port']}", each["key"],
                          each["scheduler"], f"{each['flows']:,}",
                          f"{sum(rate[0] for rate in own):.1f}",
                          short(sum(rate[1] for rate in own)), counted(each["backends"]))
        return table

    def _backends(self, rates: dict[Key, tuple[float, float]]) -> Table:
        table = _table(
            ("service", "id", "address", "state"),
            ("share", "flows", "new/s", "bytes/s", "unanswered", "check"), ("it",))
        for each in sorted(self._now.backends, key=lambda one: self._order(one, rates),
                           reverse=self.reverse):
            new, octets = rates.get((each["service"], each["id"]), (0.0, 0.0))
            check = each["check"]
            table.add_row(
                Text(each["service"]), str(each["id"]), each["address"],
                Text(each["state"], _STYLES.get(each["state"], "")), f"{each['share']:.1%}",
                f"{each['flows']:,}", f"{new:.1f}", short(octets), f"{each['unanswered']:,}",
                f"{check['seconds'] * 1000:.1f} ms" if check else "–",
                Text(found_by(check) if check else "is not checked"))
        return table

    def _order(self, backend: dict[str, Any], rates: dict[Key, tuple[float, float]]) -> Any:
        key = backend["service"], backend["id"]
        new, octets = rates.get(key, (0.0, 0.0))
        check = backend["check"]
        first: Any = {
            "n": 0, "s": backend["state"], "f": -backend["flows"], "h": -new, "b": -octets,
            "u": -backend["unanswered"], "c": -check["seconds"] if check else 0}[self.sort]
        return first, key


def _table(left: tuple[str, ...], right: tuple[str, ...], rest: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in rest:
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    return table


def _reasons(rates: dict[str, float]) -> Table:
    table = _table(("packets by reason",), ("a second",), ())
    most = sorted(rates.items(), key=lambda item: -item[1])[:_MOST_REASONS]
    for name, rate in most:
        if rate:
            table.add_row(name, f"{rate:,.1f}")
    return table


def short(number: float) -> str:
    """Such as 950, 1.2k, 35.0M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def run(client: Client, namespace: argparse.Namespace) -> int:
    """The command. Returns: the exit code."""
    view, interval_s = View(look(client)), max(namespace.interval, 0.1)
    if namespace.once:
        time.sleep(interval_s)
        view.add(look(client))
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDE)
        console.print(view.render())
        return 0
    keys = ", ".join(f"[b]{key}[/b] {name}" for key, name in SORTS.items())
    foot = Text.from_markup(f"[b]q[/b] quit; sort by {keys}; [b]r[/b] the other way")
    next_s = time.monotonic() + interval_s
    with _keys(), Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(Group(view.render(), Text(), foot), refresh=True)
            wait_s = max(next_s - time.monotonic(), 0)
            if select.select([sys.stdin], [], [], wait_s)[0]:
                key = os.read(sys.stdin.fileno(), 1)
                if key in (b"q", b""):
                    return 0
                view.press(key.decode(errors="replace"))
            else:
                try:
                    view.add(look(client))
                except NoAnswer as error:  # it is being restarted, or has much to do
                    view.missed = str(error)
                next_s = time.monotonic() + interval_s


@contextmanager
def _keys() -> Iterator[None]:
    """Each key is read as it is pressed."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
