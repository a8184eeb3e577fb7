"""Browsers' ClientHellos through each contender of the benchmark: all are answered."""

from collections.abc import Iterator
from random import Random

import pytest

from lab import contenders, hellos
from lab.topology import Lab

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        contenders.prepare(made)
        yield made


@pytest.fixture(scope="module")
def sender(lab: Lab) -> hellos.Sender:
    made = hellos.Sender(lab.directory)
    for backend in lab.backends:
        made.serve(backend, backend.server, contenders.TLS_PORT)
    return made


@pytest.mark.parametrize("name", contenders.TLS_NAMES)
def test_every_hello_is_answered(lab: Lab, sender: hellos.Sender, name: str) -> None:
    mixed = hellos.mix(64, Random(1))

    with contenders.running(lab, name, tls=True) as contender:
        load = sender.send(lab.client, contender.address, contender.port, mixed, 1, connections=4)

    assert load.rate > 0
    assert load.failed == 0
    assert load.p99_ms > 0


def test_a_connection_that_is_refused_counts_as_failed(lab: Lab, sender: hellos.Sender) -> None:
    where = lab.client, lab.backend(1).server, 9

    load = sender.send(*where, hellos.mix(1, Random(1)), 0.2, connections=1)

    assert load.rate == 0
    assert load.failed > 0
