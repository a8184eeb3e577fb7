"""The balancer's view of the ways to its backends, on a host of the lab."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from netns import inside

from balancer.measure import Measurement
from balancer.paths import NO_ROUTE, UNKNOWN, Paths, Route
from balancer.routes import RouteWatch
from common.engine.sources import Sources
from lab.topology import BALANCER, Lab

FIRST, FAR = socket.inet_aton("192.168.33.20"), socket.inet_aton("10.9.9.9")
PATIENCE_S = 20


class Watch:
    """A RouteWatch in a loop. said: all that it has said."""

    def __init__(self, lab: Lab) -> None:
        self.said: list[dict[bytes, Route]] = []
        with inside(lab.balancer):
            self.watch = RouteWatch([FIRST, FAR], self.said.append, "eth1")
            self.watch.look_up()
        self._sources = Sources(self.watch.sources, _raise)
        self._namespace = lab.balancer

    def until(self, address: bytes, what: str, value: object) -> Route:
        """Wait until it says so."""
        end_s = time.monotonic() + PATIENCE_S
        while not self.said or getattr(self.said[-1][address], what) != value:
            assert time.monotonic() < end_s, self.said[-1:]
            self._sources.wait(0.1)
        return self.said[-1][address]


def _raise(_: object) -> None:
    raise


@pytest.fixture
def watch(lab: Lab) -> Iterator[Watch]:
    return Watch(lab)


def test_the_way_to_a_neighbour_is_known_without_waiting_for_it(watch: Watch) -> None:
    route = watch.said[0][FIRST]

    assert route.own_address == socket.inet_aton(BALANCER)
    assert route.mtu == 1500


def test_no_way_is_known_where_there_is_none(watch: Watch) -> None:
    assert watch.said[0][FAR] == NO_ROUTE


def test_a_new_route_and_its_mtu_are_told(lab: Lab, watch: Watch) -> None:
    lab.balancer.run(["ip", "route", "add", "10.9.0.0/16", "via", "192.168.33.20", "mtu", "1400"])
    route = watch.until(FAR, "mtu", 1400)
    lab.balancer.run(["ip", "route", "del", "10.9.0.0/16"])
    gone = watch.until(FAR, "mtu", 0)

    assert route.own_address == socket.inet_aton(BALANCER)
    assert gone == NO_ROUTE


def test_a_neighbour_s_address_is_told_once_it_is_known_and_when_it_changes(
    lab: Lab, watch: Watch
) -> None:
    index, mac = _link(lab, "eth1")
    while watch.said[-1][FIRST].hop == UNKNOWN:
        watch.until(FIRST, "own_address", socket.inet_aton(BALANCER))
        watch._sources.wait(0.1)
    first = watch.said[-1][FIRST].hop
    lab.balancer.run(["ip", "neigh", "replace", "192.168.33.20", "lladdr", "02:00:00:00:00:09",
                      "dev", "eth1", "nud", "permanent"])
    changed = watch.until(FIRST, "hop", first._replace(destination=bytes.fromhex("020000000009")))

    assert (first.interface, first.source, first.mtu) == (index, mac, 1500)
    assert changed.mtu == 1500


def _link(lab: Lab, name: str) -> tuple[int, bytes]:
    words = lab.balancer.run(["ip", "-o", "link", "show", name]).split()
    return int(words[0][:-1]), bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))


def test_a_path_is_measured_to_be_narrow_and_to_be_whole_again() -> None:
    with Lab(backends=1, hub=True, backend_mtu=1400) as lab:
        address = socket.inet_aton(lab.backend1.address)
        paths = Paths([address])
        with inside(lab.balancer):
            watch = RouteWatch(paths, paths.set_routes, "eth1")
            watch.look_up()
            measurement = Measurement(paths)
        sources = Sources([*watch.sources, measurement], _raise)
        first = paths[address].mtu
        _wait(sources, lambda: paths[address].mtu == 1400)
        # the whole way becomes wider, and back
        for node, interface in ((lab.switch, "br1"), (lab.switch, "p-router3"),
                                (lab.switch, "p-backend1"), (lab.router, "eth3"),
                                (lab.backend1, "eth1")):
            node.run(["ip", "link", "set", interface, "mtu", "1500"])
        lab.balancer.run(["ip", "route", "flush", "cache"])

        measurement.soon()

        assert first == 1500
        _wait(sources, lambda: paths[address].mtu == 1500)


def _wait(sources: Sources, holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s
        sources.wait(0.1)
