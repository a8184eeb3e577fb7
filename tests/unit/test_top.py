"""`top`: rates of what was counted, and an order of rows."""

import pytest
from rich.console import Console

from balancer.tools import top
from balancer.tools.words import found_by


def seen(seconds: float, *counts: tuple[int, int]) -> top.Look:
    backends = [
        {"service": "web", "id": place + 1, "address": "192.0.2.1", "state": "up", "share": 0.5,
         "flows": 9 - place, "handoffs": handoffs, "bytes": octets,
         "unanswered": 10 * place, "check": None}
        for place, (handoffs, octets) in enumerate(counts)]
    status = {"state": "ready", "uptime_seconds": 7, "flows": 17, "max_flows": 100,
              "backends": {"up": 2}}
    return top.Look(seconds, status, [], backends, {"handoff": sum(each[0] for each in counts)})


def test_top_reckons_rates_by_when_it_was_counted() -> None:
    view = top.View(seen(10, (100, 5000), (0, 0)))
    assert view.rates() == ({}, {})

    view.add(seen(12, (120, 9000), (10, 0)))
    view.add(seen(12, (120, 9000), (10, 0)))  # not counted since

    assert view.rates() == ({("web", 1): (10, 2000), ("web", 2): (5, 0)}, {"handoff": 15})


def test_top_sorts_by_keys() -> None:
    def order() -> list[int]:
        (table,) = [each for each in view.render().renderables
                    if getattr(each, "columns", None) and each.columns[1].header == "id"]
        return [int(cell) for cell in table.columns[1].cells]

    view = top.View(seen(10, (0, 0), (0, 0), (0, 0)))
    view.add(seen(11, (1, 0), (9, 0), (5, 0)))
    orders = {}
    for key in "nfhu":
        view.press(key)
        orders[key] = order()
    view.press("r")
    view.press("?")

    assert orders == {"n": [1, 2, 3], "f": [1, 2, 3], "h": [2, 3, 1],
                      "u": [3, 2, 1]}
    assert order() == [1, 2, 3]


def shown(view: top.View) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(view.render())
    return captured.get()


def test_top_says_why_there_is_no_later_look_until_there_is_one() -> None:
    view = top.View(seen(10, (0, 0)))

    view.missed = "nothing answers"
    assert "these figures are old: nothing answers" in shown(view)
    view.add(seen(11, (0, 0)))

    assert "old" not in shown(view)


def test_the_cause_stands_beside_what_a_check_has_found() -> None:
    look = seen(10, (0, 0))
    look.backends[0]["check"] = {"seconds": 0.1, "says": "is silent", "cause": "no bridge at X"}

    assert "is silent; no bridge at X" in shown(top.View(look))
    assert found_by({"says": "answers", "cause": None}) == "answers"
    assert found_by({"says": "", "cause": None}) == "not checked yet"


@pytest.mark.parametrize("number, text", [
    (0, "0"), (999, "999"), (1234, "1.2k"), (99_940, "99.9k"), (999_400, "999.4k"),
    (35_000_000, "35.0M")])
def test_rates_are_short(number: float, text: str) -> None:
    assert top.short(number) == text
