"""Measure the pair beside no balancer, HAProxy and nginx: one network, one run, alternating.

Ratios are what counts; absolute figures depend on the machine and on what else it does. CPU
seconds are those of the balancing process and of its eBPF programs, taken in a pass of their own.
TLS hellos are a mix of browsers' ClientHellos, and once more those of them whose server name is in
the second segment; with --hellos, these rows alone. With --packets, measure the data paths alone:
nanoseconds for a packet, octets for a flow. With --attacks, measure what floods leave of real
traffic; with --checks, what health checks cost, and what a dead backend does under load; with
--changes, the longest gap in traffic while the tables of most services are made anew.
"""

import argparse
import json
import operator
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from lab import contenders, hellos
from lab.contenders import Contender
from lab.topology import Lab

_BULK_LEN = 256 << 20
_SEED = 7
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
Figures = dict[str, dict[str, list[float]]]  # contender → figure → its value in each round


class Aim(NamedTuple):
    """A figure's ratio to another contender's, or without one its value, and its bound."""

    contender: str
    figure: str
    beside: str | None
    holds: Callable[[float, float], bool]
    bound: float

    def __str__(self) -> str:
        sign = "≥" if self.holds is operator.ge else "≤"
        beside = f", to {self.beside}" if self.beside else ""
        return f"{self.contender}: {self.figure}{beside} {sign} {self.bound:g}"


AIMS = (
    Aim("portable", "requests/s", "haproxy", operator.ge, 0.25),
    Aim("portable", "connections/s", "haproxy", operator.ge, 0.1),
    Aim("portable", "balancer CPU s per GB", "haproxy", operator.le, 1),
    *(Aim("fast, adopt", figure, "direct", operator.ge, 0.97)
      for figure in ("requests/s", "connections/s", "bulk Mbit/s")),
    Aim("fast, adopt", "requests/s", "routed", operator.ge, 0.97),
    Aim("fast, adopt", "requests/s", "haproxy", operator.ge, 2),
    Aim("fast, adopt", "connections/s", "haproxy", operator.ge, 1.3),
    Aim("fast, adopt", "bulk Mbit/s", "haproxy", operator.ge, 5),
    Aim("fast, splice", "bulk Mbit/s", "direct", operator.ge, 0.85),
    Aim("fast, adopt", "new connection p99 ms", "direct", operator.le, 1.5),
    Aim("fast, adopt", "balancer CPU s per GB", "haproxy", operator.le, 0.05),
    Aim("fast, adopt", "octets crossing per octet served", None, operator.le, 0.01),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark, print tables, and write the figures as JSON. Returns: 0."""
    parser = argparse.ArgumentParser(prog="lab/run bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of every measurement (default 3)")
    parser.add_argument("--seconds", type=int, default=4, help="of each load (default 4)")
    parser.add_argument("--output", default="bench.json", help="JSON file (default bench.json)")
    parser.add_argument("--hellos", action="store_true", help="the rows of TLS hellos alone")
    parser.add_argument("--packets", action="store_true",
                        help="the data paths alone, without traffic (about three minutes)")
    parser.add_argument("--attacks", action="store_true",
                        help="real traffic beside floods (about 45 minutes)")
    parser.add_argument("--row", action="append", default=[], metavar="TEXT", dest="rows",
                        help="of --attacks, those with this in their name; may be repeated")
    parser.add_argument("--contender", action="append", default=[], metavar="NAME", dest="names",
                        choices=("direct", "haproxy", *contenders.OURS),
                        help="of --attacks, for this one alone (%(choices)s); may be repeated")
    parser.add_argument("--checks", action="store_true",
                        help="health checks, and a backend that dies (about four minutes)")
    parser.add_argument("--changes", action="store_true",
                        help="the longest gap in traffic while all tables change (about a minute)")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.add_argument("--against", metavar="FILE",
                        help="an earlier run's JSON: what each figure was, and its ratio to that")
    options = parser.parse_args(arguments)
    before = json.loads(Path(options.against).read_text()) if options.against else None
    figures, lines = _run(options)
    text = json.dumps(figures, indent=1) + "\n"
    Path(options.output).write_text(text)
    if options.json:
        print(text, end="")
    else:
        print("\n".join(lines))
    if before is not None and not options.json:
        print("\n".join(["", *comparison(before, figures)]))
    return 0


def _run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Measure. Returns: the figures, and their table. What --help must not need is read here."""
    if options.packets:
        from lab import packets

        found: dict[str, Any] = packets.measure(options.rounds, _say)
        return found, list(packets.table(found))
    if options.attacks:
        from lab import attacks

        found = attacks.measure(options.rounds, options.seconds, _say, options.rows, options.names)
        return found, list(attacks.table(found))
    if options.checks:
        from lab import checks

        found = checks.measure(options.seconds, _say)
        return found, list(checks.table(found))
    if options.changes:
        from lab import changes

        found = changes.measure(options.seconds, _say)
        return found, list(changes.table(found))
    with Lab() as lab:
        figures = _measure(lab, options.rounds, options.seconds, options.hellos)
    return figures, [*table(figures), "", *verdicts(figures)]


def _say(progress: str) -> None:
    print(f"bench: {progress}", file=sys.stderr, flush=True)


# --- measuring ---


def _measure(lab: Lab, rounds: int, seconds: int, only_hellos: bool) -> Figures:
    contenders.prepare(lab)
    (lab.files / "bulk").write_bytes(os.urandom(1 << 20) * (_BULK_LEN >> 20))
    sender = hellos.Sender(lab.directory)
    for backend in lab.backends:
        sender.serve(backend, backend.server, contenders.TLS_PORT)
    figures: Figures = {
        name: {} for name in (contenders.TLS_NAMES if only_hellos else contenders.NAMES)}
    for number in range(rounds):
        for name, noted in figures.items():
            _say(f"round {number + 1} of {rounds}: {name}")
            found: dict[str, float] = {}
            if not only_hellos:
                with contenders.running(lab, name) as contender:
                    _wrk(lab, contender, 1)  # until caches and processors are warm
                    found = _speed(lab, contender, seconds) | _cost(lab, contender)
            if name in contenders.TLS_NAMES:
                with contenders.running(lab, name, tls=True) as contender:
                    found |= _hellos(lab, contender, sender, seconds)
            for figure, value in found.items():
                noted.setdefault(figure, []).append(value)
    return figures


def _speed(lab: Lab, contender: Contender, seconds: int) -> dict[str, float]:
    """How fast one is."""
    kept = _wrk(lab, contender, seconds)
    closed = _wrk(lab, contender, seconds, "-H", "Connection: close")
    crossed = _growth(lambda: lab.balancer.octets("rx"))
    speeds = _downloads(lab, contender, seconds)
    return {
        "requests/s": _number(kept, r"Requests/sec:\s+([\d.]+)"),
        "p50 ms": _latency_ms(kept, "50%"),
        "p99 ms": _latency_ms(kept, "99%"),
        "connections/s": _number(closed, r"Requests/sec:\s+([\d.]+)"),
        "new connection p99 ms": _latency_ms(closed, "99%"),
        "failed requests": _failures(kept) + _failures(closed),
        "bulk Mbit/s": statistics.median(speeds),
        "octets crossing per octet served": crossed() / (_BULK_LEN * len(speeds)),
    }


def _cost(lab: Lab, contender: Contender) -> dict[str, float]:
    """What balancing costs in CPU seconds."""
    if contender.balancing is None:
        return {f"balancer CPU s per {unit}": 0.0
                for unit in ("GB", "1000 requests", "1000 connections")}
    process = contender.balancing
    with contenders.programs_timed():
        used = _growth(lambda: contenders.cpu_s(process, _TICKS_PER_S))
        count = len(_downloads(lab, contender, 1))
        per_gb = used() * 1e9 / (_BULK_LEN * count)
        used = _growth(lambda: contenders.cpu_s(process, _TICKS_PER_S))
        requests = _number(_wrk(lab, contender, 1), r"(\d+) requests in")
        per_request = used() / requests
        used = _growth(lambda: contenders.cpu_s(process, _TICKS_PER_S))
        closed = _wrk(lab, contender, 1, "-H", "Connection: close")
        per_connection = used() / _number(closed, r"(\d+) requests in")
    return {
        "balancer CPU s per GB": per_gb,
        "balancer CPU s per 1000 requests": per_request * 1000,
        "balancer CPU s per 1000 connections": per_connection * 1000,
    }


def _hellos(
    lab: Lab, contender: Contender, sender: hellos.Sender, seconds: int
) -> dict[str, float]:
    """New connections whose first words are a browser's."""
    mixed = hellos.mix(1024, Random(_SEED))
    late = [hello for hello in mixed if not hello.is_named_at_once]
    where = lab.client, contender.address, contender.port
    sender.send(*where, mixed, 1)  # until caches and processors are warm
    every, named_late = (sender.send(*where, each, seconds) for each in (mixed, late))
    return {
        "TLS hellos/s, two segments": every.rate,
        "of these the slowest 1 %, ms": every.p99_ms,
        "TLS hellos/s, name in the second": named_late.rate,
        "failed TLS hellos": float(every.failed + named_late.failed),
    }


def _wrk(lab: Lab, contender: Contender, seconds: int, *flags: str) -> str:
    return lab.client.run(["wrk", "-t1", "-c32", f"-d{seconds}s", "--latency", *flags,
                           f"{contender.url}/x"])


def _downloads(lab: Lab, contender: Contender, seconds: int) -> list[float]:
    """Mbit/s of each, one after the other for that time; one at least."""
    speeds: list[float] = []
    until = time.monotonic() + seconds
    while not speeds or time.monotonic() < until:
        speed = lab.client.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{speed_download}",
                                f"{contender.url}/files/bulk"])
        speeds.append(float(speed) * 8 / 1e6)
    return speeds


def _growth(read: Callable[[], float]) -> Callable[[], float]:
    before = read()
    return lambda: read() - before


def _number(text: str, pattern: str) -> float:
    """The first group. Raises: RuntimeError with the text in which it is not found."""
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern!r} in: {text}")
    return float(found[1])


def _failures(text: str) -> float:
    """Requests that wrk saw fail: by the socket, or answered with something else than success."""
    counts = re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", text)
    return float(sum(map(int, counts)))


def _latency_ms(text: str, share: str) -> float:
    milliseconds = {"us": 0.001, "ms": 1, "s": 1000}
    unit = re.search(rf"{share}\s+[\d.]+(us|ms|s)", text)
    return _number(text, rf"{share}\s+([\d.]+)") * milliseconds[unit[1] if unit else "ms"]


# --- for people ---


def table(figures: Figures) -> Iterator[str]:
    """Medians, and how far the rounds are apart: half of the range, in percent."""
    yield f"{'median ± half the range':<36}" + "".join(f"{name:>17}" for name in figures)
    for figure in figures["direct"]:
        cells = ""
        for found in figures.values():
            values = found.get(figure)
            if values is None:
                cells += f"{'–':>17}"
                continue
            middle = statistics.median(values)
            spread = (max(values) - min(values)) / 2 / middle if middle else 0
            cells += f"{f'{_shown(middle)} ±{spread:4.0%}':>17}"
        yield f"{figure:<36}{cells}"


def verdicts(figures: Figures) -> Iterator[str]:
    """What each aim came to."""
    yield "aims"
    for aim in AIMS:
        if aim.figure not in figures[aim.contender]:
            continue
        value = statistics.median(figures[aim.contender][aim.figure])
        if aim.beside:
            value /= statistics.median(figures[aim.beside][aim.figure]) or float("nan")
        verdict = "met" if aim.holds(value, aim.bound) else "missed"
        yield f"  {verdict:<8}{aim!s:<72}{value:>9.3f}"


def comparison(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What each figure of an earlier run has become; of several rounds the medians count."""
    old, new = dict(_flat(before)), dict(_flat(now))
    yield f"{'beside the earlier run':<78}{'then':>10}{'now':>10}{'ratio':>8}"
    for name in (*old, *(name for name in new if name not in old)):
        cells = [_shown(found[name]) if name in found else "–" for found in (old, new)]
        ratio = f"{new[name] / old[name]:.3f}" if name in new and old.get(name) else "–"
        yield f"{name:<78}{cells[0]:>10}{cells[1]:>10}{ratio:>8}"


def _flat(figures: dict[str, Any], head: str = "") -> Iterator[tuple[str, float]]:
    """Each figure of nested tables by its whole name."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{head}{name}: ")
        else:
            yield head + name, statistics.median(value) if isinstance(value, list) else value


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
