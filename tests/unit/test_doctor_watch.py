"""The doctor within the balancer: whom it looks at and when, and what of it is said."""

import logging
import select
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from test_pool import backend, balancer

from balancer.config import Config
from balancer.doctor import watch
from balancer.doctor.agenda import AGAIN_S, EVERY_S, LONG_S, PACE_S, Agenda
from balancer.doctor.watch import AT_A_TIME, DoctorWatch
from balancer.health.monitor import Monitor
from balancer.health.settings import Check
from common.doctor.host import may_be_killed
from common.doctor.report import Complaint, Severity
from common.doctor.said import Said
from common.engine.log import FIELDS

A, B = b"\x0a\0\0\1", b"\x0a\0\0\2"
ILL = Complaint(Severity.ERROR, "it refuses", "start it")
PATIENCE_S = 30


# --- when ---


def agenda(*addresses: bytes) -> Agenda:
    made = Agenda(Random(1))
    made.follow(addresses, 0.0)
    return made


def looks(made: Agenda, until_s: float, is_ill: bool = False) -> list[float]:
    """When a look begins, if each takes no time."""
    times: list[float] = []
    while made.due_s <= until_s:
        now_s = made.due_s
        address = made.take(now_s)
        if address is not None:
            times.append(now_s)
            made.done(address, now_s, is_ill)
    return times


def test_each_bridge_is_looked_at_in_turn() -> None:
    times = looks(agenda(A), 60)

    assert times[0] <= EVERY_S
    assert [round(after - before, 6) for before, after in pairwise(times)] == \
        [EVERY_S] * (len(times) - 1)


def test_very_many_are_looked_at_at_a_pace() -> None:
    times = looks(agenda(*(number.to_bytes(4) for number in range(1000))), 500)

    assert len(times) <= 500 / PACE_S + 1000


def test_one_in_doubt_is_looked_at_at_once_and_then_not_too_soon_again() -> None:
    made = agenda(A)
    made.doubt(A, 0.0)
    assert made.take(0.0) == A
    made.doubt(A, 0.1)  # while it is looked at
    assert made.take(EVERY_S) is None

    made.done(A, 0.5, False)

    assert made.take(0.5 + AGAIN_S / 2) is None
    assert made.take(0.5 + AGAIN_S) == A


def test_one_that_stays_ill_is_looked_at_less_and_less_often() -> None:
    times = looks(agenda(A), 200, is_ill=True)

    pauses = [round(after - before, 6) for before, after in pairwise(times)]
    assert pauses[:4] == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S, 8 * AGAIN_S]
    assert set(pauses[4:]) == {LONG_S}


def test_those_that_have_gone_are_not_looked_at() -> None:
    made = agenda(A, B)

    assert made.follow([B], 0.0) == {A}

    made.doubt(A, 0.0)
    assert made.take(EVERY_S) == B
    assert made.take(10 * EVERY_S) is None


# --- what is said ---


def test_a_cause_is_said_once_while_it_holds_for_any() -> None:
    said = Said()

    assert said.note("web", [ILL], 0).begun == [ILL]
    assert said.note("tls", [ILL], 1) == ([], [])
    assert said.note("web", [ILL], 2) == ([], [])
    assert said.note("web", [], 3) == ([], [])
    assert said.note("tls", [], 4) == ([], [ILL])


def test_other_figures_are_no_news() -> None:
    said = Said()
    early, late = (Complaint(Severity.WARNING, f"{seconds} s ahead", "NTP", "its clock")
                   for seconds in (7, 8))

    assert said.note("web", [early], 0).begun == [early]
    assert said.note("web", [late], 1) == ([], [])
    assert said.note("web", [], 2).ended == [early]


def test_what_flaps_is_said_at_longer_and_longer_intervals() -> None:
    said = Said()
    times = []
    for second in range(0, 3600, 2):
        if said.note("web", [ILL], second).begun:
            times.append(second)
        said.note("web", [], second + 1)

    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == sorted(pauses)
    assert len(times) < 40


def test_it_is_said_late_if_it_still_holds() -> None:
    said = Said()
    said.note("web", [ILL], 0)
    said.note("web", [], 0.5)

    assert said.note("web", [ILL], 1) == ([], [])
    assert said.note("web", [ILL], 3).begun == [ILL]


def test_any_number_of_sentences_takes_bounded_memory() -> None:
    said = Said()
    begun = 0
    for number in range(5000):
        begun += len(said.note("web", [ILL._replace(sentence=str(number))], number / 100).begun)

    assert begun <= 1000
    assert said.note("web", [ILL], 4000).begun == [ILL]  # the old ones are forgotten


# --- at work ---


class Bridges:
    """In place of the network: what each look found, and how many there were at a time."""

    def __init__(self) -> None:
        self.looks: Counter[bytes] = Counter()
        self.at_once = self.most = 0
        self.may_end = threading.Event()
        self.found: tuple[Complaint, ...] = ()
        self._lock = threading.Lock()

    def look(self, _: object, __: object, address: bytes, way: object, members: list[Any],
             flows: object) -> dict[Any, tuple[Complaint, ...]]:
        with self._lock:
            self.looks[address] += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        assert self.may_end.wait(PATIENCE_S)
        with self._lock:
            self.at_once -= 1
        return {member.backend: self.found for member in members}


class Sender:
    def __init__(self, mark: int) -> None:
        self.mark = mark


@pytest.fixture
def bridges(monkeypatch: pytest.MonkeyPatch) -> Bridges:
    made = Bridges()
    monkeypatch.setattr(watch, "_look_at_bridge", made.look)
    monkeypatch.setattr(watch, "_look_at_host", lambda *_: {})
    monkeypatch.setattr(watch, "RawSender", Sender)
    return made


class Watched:
    """A doctor's watch over so many backends, and the loop."""

    def __init__(self, count: int) -> None:
        datapath = balancer(*(backend(number + 1) for number in range(count)),
                            check=Check(kind="http"))
        self.monitor = Monitor(datapath.services, lambda: datapath.secrets, datapath.paths,
                               lambda: 0, Random(1))
        self.monitor.on_time(0, 0)
        self.backends = list(datapath.services.backends())
        config = Config(services=tuple(each.config for each in datapath.services))
        self.watch = DoctorWatch(datapath, self.monitor, Random(1), lambda: config, "")
        self.watch.on_deadline()

    def doubt(self) -> None:
        for each in self.backends:
            self.watch.doubt(each, False)

    def doubt_often(self) -> None:
        """Again and again, with time to begin looks in between."""
        for _ in range(10):
            self.doubt()
            self.watch.on_deadline()

    def turn(self) -> None:
        """Hear of a look that has ended, and begin others."""
        worker = self.watch.sources[1]
        assert select.select([worker], [], [], PATIENCE_S)[0]
        worker.on_ready()
        self.watch.on_deadline()


def test_when_all_checks_fail_at_once_some_bridges_are_asked_at_a_time(bridges: Bridges) -> None:
    watched = Watched(127)

    watched.doubt_often()
    bridges.may_end.set()
    while len(bridges.looks) < 127:
        watched.turn()

    assert bridges.most <= AT_A_TIME


def test_a_bridge_is_asked_once_at_a_time(bridges: Bridges) -> None:
    watched = Watched(1)

    watched.doubt_often()
    bridges.may_end.set()
    watched.turn()

    assert bridges.looks == {watched.backends[0].address: 1}


def test_the_cause_is_logged_with_its_remedy_and_shown_with_the_check(
    bridges: Bridges, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bridges.found = (Complaint(Severity.NOTE, "it is spliced", "adopt"), ILL)
    bridges.may_end.set()
    watched = Watched(1)
    target = watched.monitor.target_of(watched.backends[0])

    watched.doubt()
    while not (target and target.cause):
        watched.watch.on_deadline()
        watched.turn()

    assert target.cause == ILL
    record = next(each for each in caplog.records if "refuses" in each.getMessage())
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "doctor: it refuses; remedy: start it"
    assert getattr(record, FIELDS) == {"event": "cause", "severity": "error",
                                       "sentence": "it refuses", "remedy": "start it"}


def test_whoever_sets_probe_port_to_0_has_no_bridge_asked(bridges: Bridges) -> None:
    datapath = balancer(backend(1))
    monitor = Monitor(datapath.services, lambda: datapath.secrets, datapath.paths, lambda: 0,
                      Random(1))
    config = Config(services=tuple(each.config for each in datapath.services), probe_port=0)
    made = DoctorWatch(datapath, monitor, Random(1), lambda: config, "")

    made.on_deadline()
    for each in datapath.services.backends():
        made.doubt(each, False)
    made.on_deadline()

    assert not bridges.looks


@pytest.mark.parametrize("line, may", [
    ("Seccomp:\t0\n", False), ("Seccomp:\t2\n", True), ("", True)])
def test_where_system_calls_are_filtered_the_clock_is_not_asked(
    line: str, may: bool, tmp_path: Path
) -> None:
    """A call that a unit does not allow ends the program."""
    path = tmp_path / "status"
    path.write_text(f"Name:\tbalancer\n{line}Seccomp_filters:\t3\n")

    assert may_be_killed(path) is may
