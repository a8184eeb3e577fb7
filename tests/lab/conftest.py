"""Labs for tests: the network, and the network with the pair running in it."""

import os
from collections.abc import Iterator

import pytest
from traffic import Pair, start_quick

from lab.topology import PAIRS, Lab, sweep

# The portable engine is the specification. Tests of the fast one name it, and the others are run
# with it by `lab/run test --pair`.
os.environ.setdefault("L3DSR_PAIR", "portable")

_ONE_EACH = ["portable", "adopt", "splice"]  # of engines, and of modes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """any_kind: of pairs, in which each engine and mode is once; with --thorough all mixtures."""
    if "any_kind" in metafunc.fixturenames:
        is_thorough = metafunc.config.getoption("thorough")
        metafunc.parametrize("any_kind", sorted(PAIRS) if is_thorough else _ONE_EACH)


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers() -> None:
    """What killed test runs left behind must not disturb this one."""
    sweep()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The network, with nothing running in it."""
    with Lab() as network:
        yield network


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The pair at work, with nginx on two backends, shared by the tests of a module."""
    with Lab() as network:
        yield start_quick(network)
