"""A service's backends while they change: who stays, who leaves, and what each has counted."""

from ipaddress import IPv4Address
from random import Random

from balancer import config
from balancer.datapath import Datapath
from balancer.keys.request import KeySpec
from balancer.pool.pool import State
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.verdict import Event, Verdict
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH, RST

VIP = IPv4Address("192.168.33.10")
SECRETS = Secrets(bytes(16))
NOW_MS = 1_700_000_000_000
REQUEST = b"GET /%d HTTP/1.1\r\n\r\n"


def backend(number: int, weight: int = 1, address: int = 0) -> config.Backend:
    return config.Backend(number, VIP + (address or 10 + number), weight)


def balancer(*backends: config.Backend, scheduler: str = "rendezvous", **service) -> Datapath:
    return Datapath(config.Config(services=(config.Service(
        name="web", vip=VIP, port=80, dscp=3, key=KeySpec.parse("http.path"), backends=backends,
        scheduler=scheduler, **service,
    ),)), SECRETS, random=Random(1))


def ends(number: int) -> bytes:
    return (10 << 24 | number).to_bytes(4) + VIP.packed + b"\x10\0\0\x50"


def handoff(datapath: Datapath, number: int) -> Verdict:
    """A client's first payload."""
    cookie_isn = cookie.encode(SECRETS, ends(number), 7, cookie.epoch_at(NOW_MS),
                               Offer(1460, True, 7))
    verdict = datapath.on_packet(tcp.emit(ends(number), 8, cookie_isn + 1, ACK | PSH,
                                          payload=REQUEST % number), NOW_MS)
    assert verdict.reason is Event.HANDOFF
    return verdict


def later(datapath: Datapath, number: int, flags: int = ACK, named: int = 0) -> Verdict:
    """A packet of the middle of a connection. named: the backend that its timestamps name."""
    stamps = options.emit(Options(timestamps=(5, named << 24 | 9))) if named else b""
    return datapath.on_packet(
        tcp.emit(ends(number), 5000, 6000, flags, option_octets=stamps), NOW_MS)


def where(verdict: Verdict) -> int:
    """The backend that a packet goes to, by the last octet of its address."""
    return verdict.packets[0][19] - 20


def open_flows(datapath: Datapath, count: int) -> dict[int, int]:
    """Each client with its backend."""
    return {number: where(handoff(datapath, number)) for number in range(count)}


def test_a_new_backend_gets_its_share_and_no_flow_moves() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    before = open_flows(datapath, 100)

    datapath.update(service, [backend(1), backend(2), backend(3)])

    assert {number: where(later(datapath, number)) for number in before} == before
    assert {where(handoff(datapath, number)) for number in range(100, 200)} == {1, 2, 3}


def test_a_backend_that_is_configured_no_more_keeps_its_flows_to_their_end() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    before = open_flows(datapath, 100)
    of_first = [number for number, at in before.items() if at == 1]

    datapath.update(service, [backend(2)])
    datapath.on_tick(NOW_MS)

    assert 20 < len(of_first) < 80
    assert {where(later(datapath, number)) for number in of_first} == {1}
    assert where(later(datapath, 5000, named=1)) == 1  # a flow that another balancer has
    assert {where(handoff(datapath, number)) for number in range(100, 200)} == {2}
    leaving = service.pool.get(1)
    assert leaving is not None
    assert leaving.state is State.LEAVING
    assert datapath.flows.count(leaving) == len(of_first)


def test_a_backend_goes_when_the_last_of_its_flows_has_gone() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    before = open_flows(datapath, 100)
    datapath.update(service, [backend(2)])

    for number, at in before.items():
        if at == 1:
            later(datapath, number, RST)
    datapath.on_tick(NOW_MS + 10_000)
    assert service.pool.get(1) is not None  # a reset may have been anybody's
    datapath.on_tick(NOW_MS + 900_000)

    assert service.pool.get(1) is None
    assert [each.id for each in service.pool] == [2]
    assert later(datapath, 5000, named=1).reason is not Event.TAKEOVER


def test_counters_and_flows_of_those_that_stay_are_kept() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    open_flows(datapath, 100)
    seen = {each.id: (each.handoffs, each.packets, each.octets, datapath.flows.count(each))
            for each in service.pool}

    datapath.update(service, [backend(3), backend(2, weight=5), backend(1)])

    assert {each.id: (each.handoffs, each.packets, each.octets, datapath.flows.count(each))
            for each in service.pool if each.id != 3} == seen
    assert [each.weight for each in service.pool] == [1, 5, 1]


def test_weight_0_gets_no_new_flows_and_weights_are_followed_at_once() -> None:
    datapath = balancer(backend(1), backend(2), scheduler="least-flows")
    (service,) = datapath.services
    before = open_flows(datapath, 10)

    datapath.update(service, [backend(1, weight=0), backend(2)])

    assert {where(handoff(datapath, number)) for number in range(10, 20)} == {2}
    assert {number: where(later(datapath, number)) for number in before} == before
    datapath.update(service, [backend(1), backend(2)])
    assert {where(handoff(datapath, number)) for number in range(20, 30)} == {1}


def test_who_comes_back_while_leaving_has_never_been_away() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    open_flows(datapath, 100)
    first = service.pool.get(1)

    datapath.update(service, [backend(2)])
    changes = service.update([backend(2), backend(1)])

    assert changes.changed == (first,)
    assert first is not None
    assert first is service.pool.get(1)
    assert first.state is State.SERVING
    assert {where(handoff(datapath, number)) for number in range(100, 200)} == {1, 2}


def test_a_backends_new_address_takes_its_flows_along() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services
    before = open_flows(datapath, 20)

    datapath.update(service, [backend(1, address=40), backend(2)])

    moved = {number: where(later(datapath, number)) for number in before}
    assert moved == {number: 30 if at == 1 else 2 for number, at in before.items()}


def test_without_any_backend_new_flows_are_reset_and_old_ones_go_on() -> None:
    datapath = balancer(backend(1))
    (service,) = datapath.services
    open_flows(datapath, 1)

    datapath.update(service, [])

    datapath.on_tick(NOW_MS)
    assert where(later(datapath, 0)) == 1
    later(datapath, 0, RST)
    datapath.on_tick(NOW_MS + 10_000)  # the last one has gone
    datapath.on_tick(NOW_MS + 10_100)
    assert service.pool.pick(b"/", datapath.flows.count) is None


def test_an_update_that_changes_nothing_says_so() -> None:
    datapath = balancer(backend(1), backend(2))
    (service,) = datapath.services

    assert not any(service.update([backend(2), backend(1)]))
