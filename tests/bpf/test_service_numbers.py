"""By which number flows name a service: its own through every change of the configuration."""

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from balancer import config
from balancer.offload.numbers import ServiceNumbers
from balancer.offload.program import Program
from common.bpf import BpfError, build
from common.cluster.cookie import Secrets
from common.cluster.service import Endpoint
from tests.bpf.loaded import shared

pytestmark = pytest.mark.root

VIP = IPv4Address("192.168.33.10")
ROOM = 64


@pytest.fixture
def numbers() -> Iterator[ServiceNumbers]:
    """Of a table in which nothing is known yet."""
    try:
        with shared():
            program = Program(config.Config(services=(), max_flows=1000), Secrets(bytes(16)))
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    yield ServiceNumbers(program.object.map("service_numbers"))
    program.close()


def ends(port: int) -> Endpoint:
    return Endpoint.tcp(VIP, port)


def assign(numbers: ServiceNumbers, *ports: int, forget=pytest.fail) -> dict[int, int]:
    found = numbers.assign([ends(port) for port in ports], forget)
    return {port: found[ends(port)] for port in ports}


def test_numbers_are_given_in_turn_and_kept_in_any_order(numbers: ServiceNumbers) -> None:
    first = assign(numbers, 80, 443)

    assert first == {80: 0, 443: 1}
    assert assign(numbers, 8080, 443, 80) == {8080: 2, **first}


def test_a_services_number_is_no_others_while_it_may_have_flows(numbers: ServiceNumbers) -> None:
    assign(numbers, 80, 443)

    assert assign(numbers, 443, 8080) == {443: 1, 8080: 2}
    assert assign(numbers, 80, 443) == {80: 0, 443: 1}  # it has come back


def test_a_number_is_free_again_when_the_services_flows_have_gone(numbers: ServiceNumbers) -> None:
    assign(numbers, 80, 443)
    numbers.release([ends(443)])

    assert assign(numbers, 443, 8080) == {443: 1, 8080: 0}


def test_where_no_number_is_free_those_that_left_lose_their_flows(numbers: ServiceNumbers) -> None:
    assign(numbers, *range(1, ROOM + 1))
    forgotten: list[int] = []

    found = assign(numbers, *range(3, ROOM + 3), forget=forgotten.append)

    assert {found[port] for port in range(3, ROOM + 1)} == set(range(2, ROOM))
    assert sorted(forgotten) == sorted((found[ROOM + 1], found[ROOM + 2])) == [0, 1]


def test_more_services_than_numbers_are_refused(numbers: ServiceNumbers) -> None:
    with pytest.raises(ValueError, match="more than 64"):
        assign(numbers, *range(1, ROOM + 2))
