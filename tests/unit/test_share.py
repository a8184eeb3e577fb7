"""The share of new flows that each backend has: weight, operator, health and ramp in one place."""

from ipaddress import IPv4Address
from typing import NamedTuple

import pytest
from test_pool import VIP, backend, balancer, handoff, later, open_flows, where

from balancer.datapath import Datapath
from balancer.health.settings import Check
from balancer.pool.share import (
    RAMP_STEPS,
    Operator,
    Policy,
    Shares,
    Standing,
    State,
    shares_of,
    state_of,
)
from balancer.services import ServiceState
from common.verdict import DropReason, Event
from common.wire import tcp
from common.wire.tcp import RST

UP, DOWN = Standing(), Standing(is_up=False)
DRAINING, DISABLED = Standing(Operator.DRAINING), Standing(Operator.DISABLED)


class Member(NamedTuple):
    id: int
    weight: int
    standing: Standing = UP


def shares(*standings: Standing, weights: tuple[int, ...] = (), **policy: bool) -> Shares:
    weights = weights or (1,) * len(standings)
    return shares_of([Member(number, weight, standing) for number, (weight, standing) in
                      enumerate(zip(weights, standings, strict=True), 1)], Policy(**policy))


def test_shares_are_the_weights_while_all_is_well() -> None:
    assert shares(UP, UP, UP, weights=(2, 0, 4)) == Shares({1: 2, 2: 0, 3: 4}, frozenset())


def test_who_is_down_or_draining_or_disabled_has_none() -> None:
    found = shares(UP, DOWN, DRAINING, DISABLED)

    assert found == Shares({1: 1, 2: 0, 3: 0, 4: 0}, frozenset({4}))


def test_a_ramp_is_a_part_of_the_weight() -> None:
    found = shares(UP, Standing(steps=4), weights=(1, 3))

    assert found.weights == {1: RAMP_STEPS, 2: 12}


def test_shares_fit_a_programs_table() -> None:
    found = shares(UP, Standing(steps=1), UP, weights=(65535, 1, 0))

    assert found.weights == {1: 65535, 2: 1, 3: 0}


def test_all_down_means_all_or_none() -> None:
    assert shares(DOWN, DOWN, DRAINING).weights == {1: 1, 2: 1, 3: 0}
    assert shares(DOWN, UP, weights=(1, 0)).weights == {1: 1, 2: 0}
    assert shares(DOWN, DOWN, use_all=False).weights == {1: 0, 2: 0}


def test_flows_are_cut_only_while_others_are_up() -> None:
    assert shares(UP, DOWN, resets=True).cut == {2}
    assert shares(UP, DOWN).cut == frozenset()
    assert shares(DOWN, DOWN, resets=True).cut == frozenset()
    assert shares(DOWN, DOWN, resets=True, use_all=False).cut == {1, 2}


@pytest.mark.parametrize("standing, is_leaving, state", [
    (UP, False, State.UP), (DOWN, False, State.DOWN), (DRAINING, False, State.DRAINING),
    (Standing(Operator.DISABLED, is_up=False), False, State.DISABLED), (DOWN, True, State.LEAVING),
])
def test_every_backend_is_in_one_state(standing: Standing, is_leaving: bool, state: State) -> None:
    assert state_of(standing, is_leaving) is state


# --- in the data path ---


def stand(datapath: Datapath, service: ServiceState, **standings: Standing) -> None:
    for name, standing in standings.items():
        member = service.pool.get(int(name[1:]))
        assert member is not None
        member.standing = standing
    assert datapath.follow(service, datapath.plan(service)())


@pytest.mark.parametrize("scheduler", [
    "maglev", "rendezvous", "round-robin", "random", "least-flows"])
def test_new_flows_go_to_those_that_are_up_and_open_ones_stay(scheduler: str) -> None:
    datapath = balancer(backend(1), backend(2), scheduler=scheduler)
    (service,) = datapath.services
    before = open_flows(datapath, 50)

    stand(datapath, service, b1=DOWN)

    assert {where(handoff(datapath, number)) for number in range(100, 150)} == {2}
    assert {number: where(later(datapath, number)) for number in before} == before
    stand(datapath, service, b1=UP)
    assert 1 in {where(handoff(datapath, number)) for number in range(200, 250)}


def chosen(service: ServiceState) -> dict[bytes, int]:
    keys = (b"/%d" % number for number in range(100))
    return {key: service.pool.pick(key, lambda each: 0).id for key in keys}  # type: ignore[union-attr]


def test_a_key_comes_back_to_where_it_was() -> None:
    datapath = balancer(backend(1), backend(2), backend(3), scheduler="maglev")
    (service,) = datapath.services
    before = chosen(service)

    stand(datapath, service, b1=DOWN)
    meanwhile = chosen(service)
    stand(datapath, service, b1=UP)

    moved = {key for key in before if meanwhile[key] != before[key]}
    assert {key for key, at in before.items() if at == 1} <= moved
    assert len(moved) < 40
    assert chosen(service) == before


def test_open_flows_are_reset_at_their_next_packet_where_that_is_wanted() -> None:
    datapath = balancer(backend(1), backend(2), check=Check(on_down="reset"))
    (service,) = datapath.services
    before = open_flows(datapath, 50)
    of_first = [number for number, at in before.items() if at == 1]

    stand(datapath, service, b1=DOWN)

    for number in of_first[1:]:
        verdict = later(datapath, number)
        assert verdict.reason is Event.RESET
        answer = tcp.checked(verdict.packets[0])
        assert (answer.flags, answer.seq, answer.packet.src) == (RST, 6000, VIP.packed)
    assert later(datapath, of_first[0], RST).reason is DropReason.RESET_UNANSWERED
    assert later(datapath, 5000, named=1).reason is Event.RESET  # of another balancer
    assert later(datapath, 5000, named=2).reason is Event.TAKEOVER
    first, second = service.pool
    assert datapath.flows.count(first) == 0
    assert datapath.flows.count(second) == len(before) - len(of_first)


def test_all_down_resets_new_flows_where_that_is_wanted() -> None:
    datapath = balancer(backend(1), backend(2), check=Check(all_down="reset"))
    (service,) = datapath.services

    stand(datapath, service, b1=DOWN, b2=DOWN)

    with pytest.raises(AssertionError):
        handoff(datapath, 1)
    assert datapath.counters[DropReason.NO_BACKEND] == 1


def test_a_plan_for_other_backends_is_not_followed() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    made = datapath.plan(service)()

    datapath.update(service, [backend(2), backend(3)])

    assert not datapath.follow(service, made)
    assert {where(handoff(datapath, number)) for number in range(50)} == {2, 3}


def test_an_update_leaves_the_standing_as_it_is() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    stand(datapath, service, b1=DOWN)

    datapath.update(service, [backend(1), backend(2), backend(3)])

    assert {where(handoff(datapath, number)) for number in range(50)} == {2, 3}
    assert IPv4Address(service.config.backends[0].address) == VIP + 11
