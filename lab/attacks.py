"""Floods beside real traffic: what is left of it, at each contender, in one run.

The attacker (lab/floods.py) is a host of the lab, and shares the machine's processors with all
others: how much a contender loses is to be read beside what a direct connection to nginx loses.
"""

import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lab import contenders
from lab.contenders import Contender
from lab.floods import ATTACKS, Attack, Attacker, attacker
from lab.topology import Lab

CONTENDERS = ("direct", "haproxy", "fast, adopt", "fast, splice", "portable")
_LONG = "x" * 2000  # a path that ends in the second segment
# Requests: on connections that are kept, on new ones, and on new ones that take two segments.
LOADS: dict[str, tuple[str, ...]] = {
    "kept": ("/kept",),
    "new": ("/new", "-H", "Connection: close"),
    "long": (f"/{_LONG}", "-H", "Connection: close"),
}


def measure(rounds: int, seconds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Contender → attack → figure → medians over the rounds. say: for progress.

    Raises: BpfError, BuildError.
    """
    found: dict[str, Any] = {name: {} for name in CONTENDERS}
    with Lab(clients=2) as lab, attacker(lab) as foe:
        contenders.prepare(lab)
        for number in range(rounds):
            for name in CONTENDERS:
                with contenders.running(lab, name) as contender:
                    for attack in ATTACKS:
                        say(f"round {number + 1} of {rounds}: {name}: {attack.name}")
                        figures = found[name].setdefault(attack.name, {})
                        for figure, value in _one(lab, contender, attack, foe, seconds).items():
                            figures.setdefault(figure, []).append(value)
    return {name: {attack: {figure: statistics.median(values)
                            for figure, values in figures.items()}
                   for attack, figures in attacks.items()}
            for name, attacks in found.items()}


def _one(
    lab: Lab, contender: Contender, attack: Attack, foe: Attacker, seconds: int
) -> dict[str, float]:
    """Requests of each load a second, all at once, under attack."""
    stop, sent = threading.Event(), [0.0]

    def work() -> None:
        sent[0] = foe.run(attack, contender, seconds + 2, stop)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        time.sleep(0.5)
        words = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--timeout", "10s"]
        running = [lab.client.popen([*words, *flags, f"{contender.url}{path}"], stdout=-1,
                                    text=True)
                   for path, *flags in LOADS.values()]
        texts = [process.communicate(timeout=seconds + 60)[0] for process in running]
    finally:
        stop.set()
        worker.join()
    speeds = [float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]) for text in texts]
    failed = sum(map(int, re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)",
                                     "".join(texts))))
    return {**dict(zip(LOADS, speeds, strict=True)), "failed": failed, "attack/s": sent[0]}


# --- for people ---


def table(figures: dict[str, Any]) -> Iterator[str]:
    """What is left of each contender's own quiet figures, in percent, and how many failed."""
    heads = "".join(f"{name:>34}" for name in figures)
    yield f"{'left of ' + ' / '.join(LOADS) + ' requests':<40}{heads}"
    for attack in ATTACKS:
        cells = ""
        for found in figures.values():
            quiet, now = found["none"], found[attack.name]
            left = " / ".join(f"{now[load] / quiet[load]:.0%}" if quiet[load] else "-"
                              for load in LOADS)
            cells += f"{f'{left} {_count(now)}':>34}"
        yield f"{attack.name:<40}{cells}"


def _count(found: dict[str, float]) -> str:
    failed = f", {found['failed']:.0f} failed" if found["failed"] else ""
    return f"({found['attack/s'] / 1000:.0f} k/s{failed})"
