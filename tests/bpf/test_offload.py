"""A program beside the data path: told of every change of the backends while its flows go on."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random
from typing import Any

import pytest

from balancer import config
from balancer.flows import OPEN
from balancer.health.settings import NO_CHECK, Check
from balancer.keys.request import KeySpec
from balancer.offload.flow_map import Entry
from balancer.offload.offload import beside
from balancer.offload.program import PROGRAM_NAME, Program
from balancer.paths import NextHop, Route
from balancer.pool.share import Standing
from common.bpf import BpfError, build
from common.bpf.btf import Btf
from common.bpf.objects import XDP_PASS, XDP_TX, Object
from common.bpf.pins import Kept, Version
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.cluster.service import Endpoint
from common.engine import clock
from common.engine.pressure import Pressure
from common.wire import tcp
from common.wire.tcp import ACK, PSH
from tests.bpf.loaded import shared

pytestmark = pytest.mark.root

VIP = IPv4Address("192.168.33.10")
SECRETS = Secrets(bytes(16))
ETHERNET = bytes(12) + b"\x08\0"
REQUEST = b"GET /%d HTTP/1.1\r\n\r\n"
HOP = NextHop(1, 1500, b"\2" * 6, b"\4" * 6)


def backend(number: int, weight: int = 1) -> config.Backend:
    return config.Backend(number, VIP + 10 + number, weight)


class Pair:
    """A program, and the data path beside it."""

    def __init__(
        self, *backends: config.Backend, check: Check = NO_CHECK, scheduler: str = "maglev",
    ) -> None:
        service = config.Service(name="web", vip=VIP, port=80, dscp=3, check=check,
                                 scheduler=scheduler,
                                 key=KeySpec.parse("http.path"), backends=backends)
        configured = config.Config(services=(service,), max_flows=1000)
        try:
            with shared():
                self.program = Program(configured, SECRETS)
        except (BpfError, build.BuildError) as error:
            pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
        self.datapath, self.offload = beside(self.program, configured, SECRETS, random=Random(1))
        (self.service,) = self.datapath.services
        self._run = self.program.object.program(PROGRAM_NAME).test_run
        self.tell_routes()

    def tell_routes(self) -> None:
        """As the daemon does, when the kernel has said what it knows."""
        paths = self.datapath.paths
        paths.set_routes({address: Route(b"", 1500, HOP) for address in paths})
        self.offload.tell_paths(paths)

    def update(self, *backends: config.Backend) -> None:
        self.datapath.update(self.service, backends)
        self.tell_routes()

    def give(self, packet: bytes) -> int:
        """To which backend the program sends it; 0: it goes up."""
        run = self._run(ETHERNET + packet)
        assert run.retval in (XDP_PASS, XDP_TX)
        return run.data[14 + 19] - 20 if run.retval == XDP_TX else 0

    def hand_over(self, number: int) -> int:
        now_ms = time.time_ns() // 1_000_000
        cookie_isn = cookie.encode(SECRETS, ends(number), 7, cookie.epoch_at(now_ms),
                                   Offer(1460, True, 7))
        return self.give(tcp.emit(ends(number), 8, cookie_isn + 1, ACK | PSH,
                                  payload=REQUEST % number))

    def go_on(self, number: int) -> int:
        return self.give(tcp.emit(ends(number), 5000, 6000, ACK))

    def tick(self, after_ms: int = 0) -> None:
        self.datapath.on_tick(clock.now_ms() + after_ms)

    def counts(self) -> dict[int, int]:
        return {each.id: self.datapath.flows.count(each) for each in self.service.pool}


class Versions:
    """Pins of which nothing is found. known: the versions of the maps that are to be kept."""

    known: dict[str, Version]

    def reuse_maps(self, program_file: Object, kept: list[Kept]) -> None:
        self.known = {each.name: each.version(program_file) for each in kept}


def versions() -> dict[str, Version]:
    """Those of the balancer's kept maps."""
    found = Versions()
    service = config.Service(name="web", vip=VIP, port=80, dscp=3,
                             key=KeySpec.parse("http.path"), backends=(backend(1),))
    configured = config.Config(services=(service,), max_flows=1000)
    try:
        Program(configured, SECRETS, found).close()  # type: ignore[arg-type]
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    return found.known


def ends(number: int) -> bytes:
    return (10 << 24 | number).to_bytes(4) + VIP.packed + b"\x10\0\0\x50"


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair(backend(1), backend(2))
    yield made
    made.program.close()


def test_what_the_program_enters_is_counted_at_once(pair: Pair) -> None:
    chosen = Counter(pair.hand_over(number) for number in range(100))

    assert pair.counts() == chosen
    assert len(pair.datapath.flows) == 100


def test_a_first_segment_that_comes_again_is_counted_once(pair: Pair) -> None:
    before = [pair.hand_over(number) for number in range(50)]
    pair.update(backend(1, weight=0), backend(2))

    again = [pair.hand_over(number) for number in range(50)]

    assert again == before
    assert pair.counts() == Counter(before)
    assert {pair.hand_over(number) for number in range(50, 100)} == {2}


def test_new_backends_and_weights_are_the_programs_at_once(pair: Pair) -> None:
    before = {number: pair.hand_over(number) for number in range(50)}

    pair.update(backend(1), backend(2), backend(3, weight=5))

    assert {number: pair.go_on(number) for number in before} == before
    assert {pair.hand_over(number) for number in range(50, 150)} == {1, 2, 3}


def test_the_program_forwards_a_leaving_backends_flows_to_their_end(pair: Pair) -> None:
    before = {number: pair.hand_over(number) for number in range(50)}

    pair.update(backend(2))
    pair.tick()

    assert {number: pair.go_on(number) for number in before} == before
    assert {pair.hand_over(number) for number in range(50, 100)} == {2}
    assert set(pair.counts()) == {1, 2}


def test_a_backend_whose_flows_have_gone_is_the_programs_no_more(pair: Pair) -> None:
    before = {number: pair.hand_over(number) for number in range(50)}
    pair.update(backend(2))
    for number, at in before.items():
        if at == 1:
            flow = pair.datapath.flows.get(ends(number))
            assert flow is not None
            pair.datapath.flows.remove(flow)

    pair.tick()
    pair.tick()

    assert set(pair.counts()) == {2}
    assert not any(pair.go_on(number) for number, at in before.items() if at == 1)


def test_what_was_counted_for_those_that_stay_is_kept(pair: Pair) -> None:
    handoffs = Counter(pair.hand_over(number) for number in range(50))
    pair.offload.add_counts(pair.datapath.counters)

    pair.update(backend(2), backend(1, weight=3), backend(3))
    pair.offload.add_counts(pair.datapath.counters)

    assert {each.id: each.handoffs for each in pair.service.pool if each.id < 3} == handoffs


def test_a_service_that_left_gives_its_number_back_when_its_flows_have_gone(pair: Pair) -> None:
    names, left = pair.program.numbers_kept, Endpoint.tcp(VIP, 443)
    number = names.assign([*pair.program.numbers, left], pytest.fail)[left]
    now_ms = clock.now_ms()
    pair.program.flows.enter(
        Entry(ends(1), 7, 0, now_ms, now_ms, number, 1, OPEN).pack(), now_ms)
    pair.hand_over(2)
    pair.offload.is_live = True

    pair.tick()
    assert left in names.known()
    for walk in range(1, 4):
        pair.tick(after_ms=1100 * walk)

    assert list(names.known()) == list(pair.program.numbers)
    assert [flow.key for flow in pair.datapath.flows] == [ends(2)]


def test_flows_are_not_used_on_without_the_numbers_that_they_name_services_by(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    before, digest_of_map = versions(), Btf.digest_of_map

    def changed(types: Btf, name: str, *more: Any) -> tuple[str, str]:
        key, value = digest_of_map(types, name, *more)
        return ("0" * 8, value) if name == "service_numbers" else (key, value)

    monkeypatch.setattr(Btf, "digest_of_map", changed)

    assert versions()["flows"].value != before["flows"].value


@pytest.mark.parametrize("struct", ["table", "backend_counts"])
def test_where_the_tables_own_room_has_changed_its_flows_move(
    monkeypatch: pytest.MonkeyPatch, struct: str
) -> None:
    before, describe = versions()["flows"], Btf._describe

    def changed(types: Btf, number: int) -> str:
        is_it = types._types[number].name == struct
        return "another" if is_it else describe(types, number)

    monkeypatch.setattr(Btf, "_describe", changed)
    after = versions()["flows"]

    assert after.key != before.key
    assert after.value == before.value


def test_a_backend_counts_nothing_of_an_earlier_one_of_its_number(pair: Pair) -> None:
    chosen = {number: pair.hand_over(number) for number in range(50)}
    pair.offload.add_counts(pair.datapath.counters)
    pair.update(backend(2))
    for number, at in chosen.items():
        if at == 1:
            pair.datapath.flows.remove(pair.datapath.flows.get(ends(number)))  # type: ignore[arg-type]
    pair.tick()
    assert pair.service.pool.get(1) is None

    pair.update(backend(1), backend(2))
    pair.offload.add_counts(pair.datapath.counters)

    again = pair.service.pool.get(1)
    assert again is not None
    assert (again.handoffs, again.packets, again.octets) == (0, 0, 0)


def stand(pair: Pair, number: int, standing: Standing) -> None:
    member = pair.service.pool.get(number)
    assert member is not None
    member.standing = standing
    assert pair.datapath.follow(pair.service, pair.datapath.plan(pair.service)())


def test_the_program_chooses_among_those_that_are_up_and_open_flows_stay(pair: Pair) -> None:
    before = {number: pair.hand_over(number) for number in range(40)}
    assert set(before.values()) == {1, 2}

    stand(pair, 1, Standing(is_up=False))

    # at once: nothing goes up meanwhile
    assert {number: pair.go_on(number) for number in before} == before
    assert {pair.hand_over(number) for number in range(100, 140)} == {2}
    stand(pair, 1, Standing())
    assert {pair.hand_over(number) for number in range(200, 240)} == {1, 2}


def test_flows_that_are_cut_go_up_whatever_becomes_of_the_paths() -> None:
    pair = Pair(backend(1), backend(2), check=Check(on_down="reset"))
    before = {number: pair.hand_over(number) for number in range(40)}

    stand(pair, 1, Standing(is_up=False))
    pair.tell_routes()

    assert {at: pair.go_on(number) for number, at in before.items()} == {1: 0, 2: 2}
    pair.datapath.paths.learn(pair.service.pool.get(1).address, 1400, 0)
    pair.offload.tell_paths(pair.datapath.paths)
    assert {at: pair.go_on(number) for number, at in before.items()} == {1: 0, 2: 2}
    stand(pair, 1, Standing())
    assert {number: pair.go_on(number) for number in before} == before
    pair.offload.program.close()


@pytest.mark.parametrize("scheduler", ["maglev", "rendezvous"])
def test_both_choose_alike_whoever_is_up(scheduler: str) -> None:
    pair = Pair(*(backend(number) for number in range(1, 5)), scheduler=scheduler)
    numbers = iter(range(10_000))
    down, ramp = Standing(is_up=False), Standing(steps=3)

    for number, standing in ((1, down), (3, down), (1, ramp), (1, Standing()), (3, Standing())):
        stand(pair, number, standing)
        asked = [next(numbers) for _ in range(60)]
        wanted = [pair.service.pool.pick(b"/%d" % each, lambda _: 0) for each in asked]
        assert [pair.hand_over(each) for each in asked] == [each.id for each in wanted if each]
    pair.program.close()


def test_the_program_is_told_when_the_engine_is_busy() -> None:
    pair = Pair(backend(1))
    wanted_ms = iter([0, 90, 100, 100, 100])
    pair.offload.pressure = Pressure(lambda: next(wanted_ms) * 1_000_000)
    pair.offload.is_live = True
    told = pair.program.object.shared_variable("is_busy")

    said, start_ms = [], clock.now_ms()
    for after_ms in (0, 100, 200, 1100, 1200):
        pair.datapath.on_tick(start_ms + after_ms)
        said.append(bool(int.from_bytes(told, sys.byteorder)))

    assert said == [False, True, True, False, False]
    pair.program.close()


@pytest.mark.parametrize(("all_down", "expected"), [("use all", {1, 2}), ("reset", {0})])
def test_while_all_are_down_the_program_uses_all_or_leaves_new_flows_to_the_data_path(
    all_down: str, expected: set[int]
) -> None:
    """Which resets them (tests/unit/test_share.py)."""
    pair = Pair(backend(1), backend(2), check=Check(all_down=all_down))
    before = {number: pair.hand_over(number) for number in range(40)}

    for number in (1, 2):
        stand(pair, number, Standing(is_up=False))

    assert {pair.hand_over(number) for number in range(100, 140)} == expected
    assert {number: pair.go_on(number) for number in before} == before
    pair.program.close()
