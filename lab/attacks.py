"""Floods beside real traffic: what is left of it, at each contender, in one run.

The attacker (lab/floods.py) is a host of the lab, and shares the machine's processors with all
others: how much a contender loses is to be read beside what a direct connection to nginx loses, and
beside what it loses itself while the same attack goes on aside, where it meets nobody.
"""

import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lab import contenders
from lab.contenders import Contender
from lab.floods import ATTACKS, NONE, Attack, Attacker, attacker
from lab.topology import Lab

CONTENDERS = ("direct", "haproxy", "fast, adopt", "fast, splice", "portable")
_LONG = "x" * 2000  # a path that ends in the second segment
# Requests: on connections that are kept, on new ones, and on new ones that take two segments.
LOADS: dict[str, tuple[str, ...]] = {
    "kept": ("/kept",),
    "new": ("/new", "-H", "Connection: close"),
    "long": (f"/{_LONG}", "-H", "Connection: close"),
}


def measure(
    rounds: int, seconds: int, say: Callable[[str], None], rows: Sequence[str] = (),
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Contender → attack → figure → medians over the rounds. say: for progress.

    Each attack is measured beside none at all, and beside itself aside. rows: what is in the names
    of the attacks; all without. names: of CONTENDERS; all without. Raises: BpfError, BuildError.
    """
    found: dict[str, Any] = {name: {} for name in names or CONTENDERS}
    chosen = [attack for attack in ATTACKS
              if attack == NONE or not rows or any(row in attack.name for row in rows)]
    with Lab(clients=2) as lab, attacker(lab) as foe:
        contenders.prepare(lab)
        for number in range(rounds):
            for name, attacks in found.items():
                with contenders.running(lab, name) as contender:
                    for attack in chosen:
                        say(f"round {number + 1} of {rounds}: {name}: {attack.name}")
                        for where, is_aside in ((attack.name, False), (aside(attack), True)):
                            if is_aside and attack == NONE:
                                continue
                            figures = attacks.setdefault(where, {})
                            load = _one(lab, contender, attack, foe, seconds, is_aside)
                            for figure, value in load.items():
                                figures.setdefault(figure, []).append(value)
                            time.sleep(0 if is_aside else attack.after_s)
    return {name: {attack: {figure: statistics.median(values)
                            for figure, values in figures.items()}
                   for attack, figures in attacks.items()}
            for name, attacks in found.items()}


def aside(attack: Attack) -> str:
    """What the figures call it while it goes on aside."""
    return f"{attack.name}, aside"


def _one(
    lab: Lab, contender: Contender, attack: Attack, foe: Attacker, seconds: int,
    is_aside: bool = False,
) -> dict[str, float]:
    """Requests of each load a second, all at once, under attack."""
    stop, sent = threading.Event(), [0.0]

    def work() -> None:
        sent[0] = foe.run(attack, contender, seconds + 2, stop, is_aside)

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
    """What is left of each contender's own quiet figures, in percent, and how many failed.

    Then the same of what is left while the attack goes on aside: what the attacker itself takes is
    no contender's fault.
    """
    heads = "".join(f"{name:>34}" for name in figures)
    rows = [attack for attack in ATTACKS
            if all(attack.name in found for found in figures.values())]
    yield f"{'left of ' + ' / '.join(LOADS) + ' requests':<40}{heads}"
    for attack in rows:
        yield f"{attack.name:<40}" + "".join(
            f"{_left(found[NONE.name], found[attack.name])} {_count(found[attack.name])}".rjust(34)
            for found in figures.values())
    yield ""
    yield f"{'the same, of what it leaves aside':<40}{heads}"
    for attack in rows:
        if attack != NONE:
            yield f"{attack.name:<40}" + "".join(
                f"{_left(found[aside(attack)], found[attack.name]):>34}"
                for found in figures.values())


def _left(before: dict[str, float], now: dict[str, float]) -> str:
    return " / ".join(f"{now[load] / before[load]:.0%}" if before[load] else "-"
                      for load in LOADS)


def _count(found: dict[str, float]) -> str:
    failed = f", {found['failed']:.0f} failed" if found["failed"] else ""
    return f"({found['attack/s'] / 1000:.0f} k/s{failed})"
