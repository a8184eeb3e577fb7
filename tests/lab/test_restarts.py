"""Both programs restarted again and again under load: nothing fails, and nothing is left over.

A whole minute of it: lab/run test tests/lab/test_restarts.py --thorough, or --restarts 60
"""

import itertools
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import pytest
from netns import state
from traffic import ALONE, download, large_file, resident_octets, start_quick, wrk

from common.bpf.pins import Pins
from lab.node import Node
from lab.topology import PAIRS, Lab
from tests.lab.netns import inside

pytestmark = pytest.mark.slow

LENGTH = 8_000_000
MEMORY_OCTETS = 16 << 20
MODES = {"adopt": "packetbridge-adopt-34", "splice": "packetbridge-splice-34"}


@pytest.mark.parametrize("mode", MODES)
def test_restarts_under_load_cost_nothing_and_leave_nothing(
    mode: str, request: pytest.FixtureRequest, thorough: bool
) -> None:
    seconds = request.config.getoption("restarts") or (60 if thorough else 3)
    with Lab(pair=mode) as lab:
        hosts = [lab.balancer, *lab.backends]
        before = [state(host) for host in hosts]
        pair = start_quick(lab)
        expected = large_file(lab, LENGTH)
        owners = [(lab.balancer, "balancer-33"),
                  *((backend, MODES[mode]) for backend in lab.backends)]
        wrk(lab.client, "-c20", "-d1s")
        at_work = [state(host) for host in hosts]
        pinned = [_pinned(*owner) for owner in owners]
        memory = [resident_octets(process) for process in (pair.balancer, *pair.bridges)]
        end = time.monotonic() + seconds

        ended = Event()
        with ThreadPoolExecutor(4) as pool:
            kept = pool.submit(_requests, lab, ended, "-c20")
            short = pool.submit(_requests, lab, ended, "-c10", *ALONE)
            downloads: list[Future] = [pool.submit(_downloads, lab, ended) for _ in range(2)]
            try:
                for number in itertools.cycle([signal.SIGKILL, signal.SIGUSR2]):
                    pair.balancer.stop(number)
                    pair.balancer = lab.start_balancer(*PAIRS[mode]["balancer"])
                    for place, backend in enumerate(lab.backends):
                        pair.bridges[place].stop(number)
                        pair.bridges[place] = lab.start_bridge(
                            backend, *PAIRS[mode]["packetbridge"])
                    if number == signal.SIGUSR2 and time.monotonic() >= end:
                        break
            finally:
                ended.set()

            assert kept.result() > 100
            assert short.result() > 100
            assert {digest for each in downloads for digest in each.result()} == {expected}
        assert [state(host) for host in hosts] == at_work
        assert [_pinned(*owner) for owner in owners] == pinned
        for process, octets in zip((pair.balancer, *pair.bridges), memory, strict=True):
            assert resident_octets(process) < octets + MEMORY_OCTETS
        assert [each.stop() for each in (pair.balancer, *pair.bridges)] == [0, 0, 0]
        assert [state(host) for host in hosts] == before


def _requests(lab: Lab, ended: Event, *flags: str) -> int:
    """How many requests were answered until the end. Raises: AssertionError if one was not."""
    answered = 0
    while not ended.is_set():
        answered += wrk(lab.client, "-d1s", *flags)
    return answered


def _downloads(lab: Lab, ended: Event) -> list[str]:
    """Digests of one download after the other until the end."""
    found = []
    while not ended.is_set():
        found.append(download(lab, "--limit-rate", "4M"))
    return found


def _pinned(host: Node, owner: str) -> tuple[list[str], list[str]]:
    """The maps and links that an instance has pinned."""
    with inside(host):
        own = Pins(owner)
        return sorted(own.map_paths()), own.links()
