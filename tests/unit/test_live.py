"""A balancer's data path takes another configuration: who is served, who drains, what is reset."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from balancer import config
from balancer.backends_file import BackendsFiles
from balancer.datapath import Datapath
from balancer.flows import BackendFlow
from balancer.live import LiveBalancer
from balancer.pool.pool import CUT_MS, Backend
from balancer.services import ServiceState
from common.cluster.cookie import Secrets
from common.engine.reload import Refused
from common.settings.table import Table
from common.verdict import Action, Event
from common.wire import tcp
from common.wire.five_tuple import join
from common.wire.tcp import ACK, SYN

VIP, CLIENT = bytes([192, 0, 2, 10]), bytes([203, 0, 113, 1])
KEY = bytes(16)


class Nobody:
    """In place of what watches routes, and of checks."""

    looks = 0

    def soon(self) -> None:
        self.looks += 1

    def follow(self, changed: Iterable[object]) -> None:
        self.changed = list(changed)


class Bench:
    """A balancer whose file is `text`."""

    def __init__(self, directory: Path, text: str) -> None:
        self.secret = directory / "secret"
        self.secret.write_text(KEY.hex())
        self.secret.chmod(0o600)
        self.text = text
        configured = self.load()
        self.datapath = Datapath(configured, Secrets(KEY), random=Random(1))
        nobody: Any = Nobody()
        self.live = LiveBalancer(
            configured, configured, self.load, BackendsFiles(str(directory), keeps=True),
            self.datapath, nobody, nobody, nobody, self.stand)
        self.new: list[tuple[int, int]] = []  # who may stand as is kept: port and id

    def stand(self, backends: Iterable[Backend]) -> list[ServiceState]:
        self.new = [(each.service.config.port, each.id) for each in backends]
        return []

    def load(self) -> config.Config:
        top = f'secret_file = "{self.secret}"\ninterface = "eth0"\ndrain_timeout = 10\n'
        return config.read(Table("x.toml", tomllib.loads(top + self.text)))

    def take(self, text: str) -> tuple[str, ...]:
        self.text = text
        change = self.live.read(whole=True)
        change.begin()
        change.apply()
        return change.lines

    def enter(self, port: int, backend_id: int, sport: int = 5000) -> bytes:
        """A flow without timestamps. Returns: its five-tuple."""
        key = join(CLIENT, VIP, sport.to_bytes(2, "big"), port.to_bytes(2, "big"))
        service = next(each for each in self.datapath.services if each.config.port == port)
        backend = service.pool.get(backend_id)
        assert backend
        self.datapath.flows.insert(BackendFlow(key, backend, 1, 0, 0, has_timestamps=False))
        return key

    def says(self, key: bytes, now_ms: int, flags: int = ACK) -> Event | Any:
        self.datapath.on_tick(now_ms)
        return self.datapath.on_packet(tcp.emit(key, 7, 7, flags), now_ms).reason


def service(port: int, *ids: int, more: str = "") -> str:
    backends = ", ".join(f'{{id = {id}, address = "192.0.2.{20 + id}"}}' for id in ids)
    return (f'[[service]]\nvip = "192.0.2.10"\nport = {port}\ndscp = {port % 60 + 1}\n{more}\n'
            f"backend = [{backends}]\n")


def test_a_removed_backend_keeps_its_flows_for_a_while_and_then_they_are_reset(
    tmp_path: Path
) -> None:
    bench = Bench(tmp_path, service(80, 1, 2))
    key = bench.enter(80, 1)
    other = bench.enter(80, 1, 5001)
    bench.take(service(80, 2))
    pool = next(iter(bench.datapath.services)).pool

    assert bench.says(key, 1000) is Event.FORWARDED
    assert bench.says(key, 10_900) is Event.FORWARDED
    assert bench.says(key, 11_100) is Event.RESET
    assert pool.get(1) is not None  # `other` may still say something
    assert bench.says(other, 11_000 + CUT_MS - 100) is Event.RESET
    bench.datapath.on_tick(11_000 + CUT_MS)
    assert pool.get(1) is None


def test_a_backend_that_comes_back_goes_on_as_it_was(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service(80, 1, 2))
    key = bench.enter(80, 1)
    bench.take(service(80, 2))
    bench.datapath.on_tick(1000)
    bench.datapath.on_tick(11_500)  # its time is over
    bench.take(service(80, 1, 2))

    assert bench.says(key, 12_000) is Event.FORWARDED
    assert bench.says(key, 60_000) is Event.FORWARDED


def test_a_service_that_is_removed_goes_when_its_flows_have_gone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service(80, 1) + service(81, 1))
    key = bench.enter(81, 1)
    bench.take(service(80, 1))

    assert bench.says(key, 1000) is Event.FORWARDED
    assert bench.live.tidy() is None
    bench.datapath.flows.remove(bench.datapath.flows.get(key))
    bench.datapath.on_tick(2000)

    assert [each.config.port for each in bench.datapath.services] == [80]
    tidying = bench.live.tidy()
    assert tidying is not None
    assert tidying.locks == []  # the VIP is the other one's, too
    assert bench.live.tidy() is None
    packet = tcp.emit(key, 7, 7, ACK)
    assert bench.datapath.on_packet(packet, 2000).action is Action.PASS


def test_a_service_that_comes_back_while_it_drains_is_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service(80, 1) + service(81, 1))
    key = bench.enter(81, 1)
    bench.take(service(80, 1))
    bench.datapath.on_tick(1000)
    bench.take(service(81, 1) + service(80, 1))

    assert bench.says(key, 50_000) is Event.FORWARDED
    assert not any(each.is_leaving for each in bench.datapath.services)


def test_only_backends_that_are_new_stand_as_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service(80, 1))

    bench.take(service(80, 1, 2) + service(81, 1))

    assert bench.new == [(80, 2), (81, 1)]


def test_a_way_that_was_forgotten_before_its_backend_came_is_looked_up_again(
    tmp_path: Path
) -> None:
    bench = Bench(tmp_path, service(80, 1))
    bench.text = service(80, 1, 2)
    change, watch = bench.live.read(whole=True), bench.live.watch
    change.begin()
    bench.datapath.paths.keep(each.address for each in bench.datapath.services.backends())

    change.apply()

    assert len(list(bench.datapath.paths)) == 2
    assert watch.looks == 2  # type: ignore[attr-defined]


def test_a_vip_that_has_left_is_defended_no_more(tmp_path: Path) -> None:
    other = service(81, 1).replace("192.0.2.10", "192.0.2.11")
    bench = Bench(tmp_path, service(80, 1) + other)
    watch: Any = Nobody()
    bench.live.conflicts = watch
    bench.take(service(80, 1))
    before = set(map(str, watch.changed))
    bench.datapath.on_tick(1000)
    bench.live.tidy()

    assert before == {"192.0.2.10", "192.0.2.11"}
    assert set(map(str, watch.changed)) == {"192.0.2.10"}


def test_new_services_have_numbers_of_their_own_and_are_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service(80, 1))
    key = join(CLIENT, VIP, b"\x13\x88", (81).to_bytes(2, "big"))
    assert bench.datapath.on_packet(tcp.emit(key, 7, 0, SYN), 0).action is Action.PASS

    bench.take(service(81, 1, 2) + service(80, 1))

    assert bench.says(key, 1000, SYN) is Event.SYN_ANSWERED
    assert sorted(each.number for each in bench.datapath.services) == [0, 1]


def test_what_a_service_says_of_itself_changes_with_its_flows_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service(80, 1, 2))
    key = bench.enter(80, 2)

    lines = bench.take(service(80, 1, 2, more='scheduler = "least-flows"\nmss = 1000')
                       .replace("dscp = 21", "dscp = 9"))

    state = next(iter(bench.datapath.services))
    assert len(lines) == 3
    assert type(state.pool.scheduler).__name__ == "LeastFlows"
    assert state.mss == 1000
    sent = bench.datapath.on_packet(tcp.emit(key, 7, 7, ACK), 1000).packets[0]
    assert sent[1] >> 2 == 9
    assert sent[16:20] == bytes([192, 0, 2, 22])


@pytest.mark.parametrize("top, line", [
    ('queue = 99\n', "queue: 33 → 99 (takes a restart)"),
    ('xdp = "native"\n', 'xdp: "auto" → "native" (takes a restart)'),
])
def test_what_takes_a_restart_is_refused_with_all_else(
    tmp_path: Path, top: str, line: str
) -> None:
    bench = Bench(tmp_path, service(80, 1))

    with pytest.raises(Refused) as refused:
        bench.take(top + service(80, 1, 2))

    assert refused.value.lines == (line,)
    assert len(list(bench.datapath.services.backends())) == 1


def test_the_size_of_a_table_in_memory_changes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, service(80, 1))

    bench.take("max_flows = 3\n[timeouts]\nidle = 5\n" + service(80, 1))

    for sport in range(5000, 5010):
        bench.enter(80, 1, sport)
    assert len(bench.datapath.flows) == 3
    limit, = (each for each in bench.datapath.samples() if each.name == "flows_limit")
    assert limit.value == 3
    bench.datapath.on_tick(6000)
    assert len(bench.datapath.flows) == 0


def test_more_services_than_there_are_numbers_are_refused(tmp_path: Path) -> None:
    many = [service(port, 1).replace(f"dscp = {port % 60 + 1}", f"dscp = {port - 999}")
            for port in range(1000, 1063)]
    bench = Bench(tmp_path, "".join(many[:40]))
    for port in range(1000, 1040):
        bench.enter(port, 1)
    others = [each.replace(f"port = {port}", f"port = {port + 1000}")
              for port, each in zip(range(1000, 1063), many, strict=True)]

    with pytest.raises(Refused, match="103 services, with those whose flows go on"):
        bench.take("".join(others))
