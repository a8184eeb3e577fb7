"""The loop and the thread beside it: tables are made while packets are handled."""

import select
import socket
import threading
import time
from collections.abc import Sequence
from random import Random

import pytest
from test_pool import backend, balancer, handoff, where

from balancer.health import watch
from balancer.health.settings import Check
from balancer.paths import NO_ROUTE, UNKNOWN, Route
from balancer.pool.schedule import BackendLike, Scheduler
from balancer.pool.share import State, state_of
from balancer.reckoner import Reckoner

PATIENCE_S = 20
HOURLY = Check(kind="http", interval_ms=3_600_000, timeout_ms=60_000)
OWN = bytes((192, 168, 33, 11))


class Silence:
    """Where packets go that nobody answers."""

    def send(self, packet: bytes) -> int:
        return 0


def test_127_backends_change_and_no_packet_waits_for_their_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datapath = balancer(*(backend(number) for number in range(1, 128)), scheduler="maglev",
                        check=HOURLY)
    (service,) = datapath.services
    choose = service.pool.pick
    of_one = [number for number in range(5000) if (found := choose(b"/%d" % number, lambda _: 0))
              and found.id == 1]
    heard, _other = socket.socketpair()
    heard.setblocking(False)
    monkeypatch.setattr(watch, "answers_from", lambda vips: heard)
    monkeypatch.setattr(watch, "_hear", lambda made, vips: None)
    makers: list[threading.Thread] = []
    may_go_on = threading.Event()
    schedule = service.schedule

    def slowly(backends: Sequence[BackendLike]) -> Scheduler:
        makers.append(threading.current_thread())
        assert may_go_on.wait(PATIENCE_S)
        return schedule(backends)

    service.schedule = slowly  # type: ignore[assignment]
    worker = Reckoner(datapath)
    made = watch.HealthWatch(datapath, Silence(), Random(1), worker)
    one = service.pool.get(1)
    assert one
    datapath.paths.set_routes({
        address: NO_ROUTE if address == one.address else Route(OWN, 1500, UNKNOWN)
        for address in datapath.paths})
    until_s = time.monotonic() + PATIENCE_S
    while not makers:  # the first check of each is due within a second
        assert time.monotonic() < until_s
        made.on_deadline()
        time.sleep(0.01)

    meanwhile = [where(handoff(datapath, number)) for number in of_one[:10]]
    may_go_on.set()
    done = select.poll()  # a select takes no descriptor above 1,023
    done.register(worker, select.POLLIN)
    assert done.poll(PATIENCE_S * 1000)
    worker.on_ready()
    after = {where(handoff(datapath, number)) for number in of_one[10:]}

    assert meanwhile == [1] * 10
    assert len(after) > 1
    assert 1 not in after
    assert state_of(one.standing, False) is State.DOWN
    assert threading.main_thread() not in makers
