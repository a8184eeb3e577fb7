"""Labs for tests: the network, and the network with the pair running in it."""

from collections.abc import Iterator

import pytest

from lab.topology import Lab, Process, sweep


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers() -> None:
    """What killed test runs left behind must not disturb this one."""
    sweep()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The network, with nothing running in it."""
    with Lab() as network:
        yield network


class Pair:
    """The lab with nginx and bridge on every backend, and the balancer."""

    def __init__(self, lab: Lab, balancer: Process, bridges: list[Process]) -> None:
        self.lab, self.balancer, self.bridges = lab, balancer, bridges


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The pair at work, shared by the tests of a module."""
    with Lab() as network:
        yield Pair(network, *network.start_all())
