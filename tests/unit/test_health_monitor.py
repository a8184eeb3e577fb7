"""Checks from the first packet to what follows, with a backend of this file's own."""

import logging
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from random import Random

import pytest
from test_pool import NOW_MS, SECRETS, VIP, backend, balancer

from balancer.health.monitor import Monitor
from balancer.health.settings import Check
from balancer.health.suspicion import Suspicion
from balancer.paths import UNKNOWN, Route
from balancer.pool.share import RAMP_STEPS, Operator, Standing
from common.cluster import cookie, stamps
from common.cluster.secrets import Secrets
from common.engine.log import FIELDS
from common.wire import five_tuple, options, tcp
from common.wire.options import Options
from common.wire.seq import add, delta
from common.wire.tcp import ACK, FIN, PSH, RST, SYN, Segment

OWN = bytes((192, 168, 33, 11))
OK = b"HTTP/1.1 200 OK\r\n\r\n"
CHECK = Check(kind="http", interval_ms=1000, timeout_ms=300, fall=2, rise=2)
Answer = Callable[["Network", Segment], list[bytes]]


class Network:
    """A monitor, and what becomes of its packets. answers: by a backend's id."""

    def __init__(self, check: Check = CHECK, backends: int = 2, **answers: Answer) -> None:
        self.datapath = balancer(*(backend(number + 1) for number in range(backends)), check=check)
        (self.service,) = self.datapath.services
        self.answers = {int(name[1:]): answer for name, answer in answers.items()}
        self.routes(OWN)
        self.paths_ms = 1  # the clock that paths have
        self.monitor = Monitor(self.datapath.services, lambda: self.datapath.secrets,
                               self.datapath.paths, lambda: self.paths_ms, Random(1))
        self.now_ms = 0.0
        self.handoffs: list[Segment] = []
        self.resets: list[Segment] = []

    def routes(self, source: bytes, mtu: int = 0) -> None:
        """Ways to all backends. source: empty: there is none. mtu: 0: not known."""
        paths = self.datapath.paths
        paths.set_routes({address: Route(source, mtu, UNKNOWN) for address in paths})

    def run(self, for_ms: int) -> None:
        for _ in range(for_ms // 10):
            self.now_ms += 10
            self.send(self.monitor.on_time(self.now_ms, NOW_MS + int(self.now_ms)))

    def send(self, packets: list[bytes]) -> None:
        for packet in packets:
            segment = tcp.checked(packet)
            assert segment.checksum_holds()
            assert segment.packet.tos == 3 << 2
            self.resets += [segment] if segment.flags & RST else []
            self.handoffs += [segment] if segment.payload_len else []
            number = segment.packet.dst[3] - 20
            for answer in self.answers.get(number, serves)(self, segment):
                self.send(self.monitor.on_packet(answer, self.now_ms))

    def states(self) -> list[bool]:
        return [each.standing.is_up for each in self.service.pool]

    def counts(self, number: int) -> tuple[float, float]:
        """Passed, failed."""
        found = {sample.labels["result"]: sample.value for sample in self.monitor.samples()
                 if sample.name == "backend_checks" and sample.labels["backend"] == str(number)}
        return found["passed"], found["failed"]


def reply(segment: Segment, payload: bytes = b"", flags: int = ACK, *, off: int = 0,
          seq: int | None = None, ack: int = 0) -> bytes:
    """From the VIP, `off` octets into the answer."""
    ends = five_tuple.reverse(segment.five_tuple)
    ends = VIP.packed + ends[4:]
    stamps = options.emit(Options(timestamps=(1 << 24 | 5, segment.timestamps[0]))) \
        if segment.timestamps else b""
    return tcp.emit(ends, add(segment.ack, off) if seq is None else seq,
                    add(segment.seq, segment.payload_len + ack), flags, payload=payload,
                    option_octets=stamps)


def serves(network: Network, segment: Segment) -> list[bytes]:
    return [reply(segment, OK, ACK | PSH)] if segment.payload_len else []


def refuses(network: Network, segment: Segment) -> list[bytes]:
    return [reply(segment, flags=RST | ACK)] if segment.payload_len else []


def is_silent(network: Network, segment: Segment) -> list[bytes]:
    return []


def takes_and_hangs(network: Network, segment: Segment) -> list[bytes]:
    return [reply(segment)] if segment.payload_len else []


def test_a_check_is_the_handoff_that_a_bridge_takes_and_a_reset_ends_it() -> None:
    network = Network(backends=1)
    network.run(1100)

    first, reset = network.handoffs[0], network.resets[0]
    ends = OWN + VIP.packed + first.five_tuple[8:]
    proven = cookie.check(SECRETS, ends, delta(first.seq, 1), delta(first.ack, 1), NOW_MS + 1000)
    assert proven is not None
    assert first.payload.startswith(b"GET / HTTP/1.1\r\n")
    assert first.timestamps is not None
    assert first.timestamps[1] >> 24 == 1  # names the backend
    assert first.timestamps[0] == stamps.check_mark(proven)  # bridges know it by that
    assert reset.seq == add(first.seq, first.payload_len)
    assert reset.five_tuple == first.five_tuple
    assert network.counts(1)[0] in (1, 2)


def test_ports_and_numbers_are_never_those_of_the_check_before() -> None:
    network = Network(backends=1)
    network.run(20_000)

    assert len({each.sport for each in network.handoffs}) == len(network.handoffs) > 15
    assert len({each.seq for each in network.handoffs}) == len(network.handoffs)


def test_how_long_a_check_took_is_counted_where_it_was_passed() -> None:
    network = Network(backends=2)
    network.answers[2] = refuses
    network.run(10_000)

    found = {(sample.name, sample.labels["backend"]): sample
             for sample in network.monitor.samples() if sample.kind == "histogram"}
    counts = {number: found["backend_check_duration_seconds", number].buckets[-1][1]
              for number in ("1", "2")}
    assert counts == {"1": network.counts(1)[0], "2": 0}
    assert counts["1"] > 5
    assert {sample.labels["address"] for sample in network.monitor.samples()} == {
        "192.168.33.21", "192.168.33.22"}


def test_all_are_checked_in_every_interval_and_not_at_once() -> None:
    network = Network(backends=40)
    network.run(10_000)

    assert all(9 <= network.counts(number)[0] <= 12 for number in range(1, 41))
    busiest = Network(backends=40)
    busiest.run(100)
    assert len(busiest.handoffs) < 20


@pytest.mark.parametrize("answer, words", [
    (refuses, "refuses the connection"),
    (is_silent, "is silent for 0.3 s"),
    (takes_and_hangs, "takes the request and does not answer within 0.3 s"),
    (lambda network, segment: [reply(segment, b"HTTP/1.1 503 Busy\r\n")] if segment.payload_len
     else [], "answers with status 503"),
    (lambda network, segment: [reply(segment, flags=FIN | ACK)] if segment.payload_len
     else [], "ends the connection"),
    (lambda network, segment: [reply(segment), reply(segment, flags=RST)] if segment.payload_len
     else [], "resets the connection"),
])
def test_each_failure_has_its_words(
    answer: Answer, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    network = Network(b1=answer)
    network.run(4000)

    assert network.states() == [False, True]
    assert f"backend 1 of web (192.168.33.21) is down: it {words}" in caplog.text
    down = next(getattr(record, FIELDS) for record in caplog.records if " is down" in record.msg)
    assert (down["event"], down["service"], down["backend"], down["address"]) == (
        "backend_down", "web", "1", "192.168.33.21")
    assert words in down["seen"]
    assert network.monitor.changed == {network.service}

    network.answers.clear()
    network.run(4000)
    assert network.states() == [True, True]
    assert "backend 1 of web (192.168.33.21) is up again, after" in caplog.text


def test_down_is_found_within_fall_times_interval() -> None:
    for seed in range(20):
        network = Network(Check(kind="http", interval_ms=2000, timeout_ms=1000, fall=3))
        network.run(3000 + 100 * seed)
        died_ms = network.now_ms
        network.answers[1] = is_silent
        while network.states()[0]:
            network.run(10)
        assert network.now_ms - died_ms <= 6000


def test_a_handoff_that_is_lost_is_sent_again() -> None:
    lost = []

    def loses(network: Network, segment: Segment) -> list[bytes]:
        if segment.payload_len and segment.seq not in lost:
            lost.append(segment.seq)
            return []
        return serves(network, segment)

    network = Network(b1=loses, backends=1)
    network.run(5000)

    assert network.counts(1)[0] >= 4
    assert network.counts(1)[1] == 0
    assert len(network.handoffs) == 2 * len(lost)
    assert network.handoffs[0].octets == network.handoffs[1].octets


def test_an_answer_in_pieces_repeated_and_out_of_order_is_read_and_acknowledged() -> None:
    acknowledged = []

    def serves_in_pieces(network: Network, segment: Segment) -> list[bytes]:
        if segment.payload_len:
            return [reply(segment, OK[:5]), reply(segment, OK[9:], off=9),
                    reply(segment, OK[:9]), reply(segment, OK[:5]), reply(segment, OK[5:], off=5)]
        if segment.flags == ACK:
            acknowledged.append(delta(segment.ack, network.handoffs[-1].ack))
        return []

    network = Network(b1=serves_in_pieces, backends=1)
    network.run(1100)

    assert network.counts(1)[0] >= 1
    assert acknowledged[:4] == [5, 5, 9, 9]


@pytest.mark.parametrize("forge", [
    lambda segment: reply(segment, flags=RST, off=1),
    lambda segment: reply(segment, flags=RST, off=-1),
    lambda segment: reply(segment, b"HTTP/1.1 503 No\r\n", ack=1),
    lambda segment: reply(segment, flags=SYN | ACK),
    lambda segment: reply(segment)[:40],
    lambda segment: b"",
])
def test_what_does_not_fit_says_nothing(forge: Callable[[Segment], bytes]) -> None:
    def answer(network: Network, segment: Segment) -> list[bytes]:
        return [forge(segment), *serves(network, segment)] if segment.payload_len else []

    network = Network(b1=answer, backends=1)
    network.run(5000)

    assert network.counts(1)[0] >= 4
    assert network.counts(1)[1] == 0


def test_a_late_answer_is_nobodys() -> None:
    late: list[bytes] = []

    def answer(network: Network, segment: Segment) -> list[bytes]:
        if segment.payload_len:
            late.append(reply(segment, OK))
        return []

    network = Network(b1=answer, backends=1)
    network.run(5000)
    for packet in late[:-3]:
        assert network.monitor.on_packet(packet, network.now_ms) == []

    assert network.counts(1)[0] == 0


def test_without_a_way_there_is_no_check_to_send() -> None:
    network = Network(backends=1)
    network.routes(b"")
    network.run(3000)

    assert network.handoffs == []
    assert network.states() == [False]


def test_a_long_answer_without_the_words_is_not_read_for_ever() -> None:
    def serves_much(network: Network, segment: Segment) -> list[bytes]:
        first = network.handoffs[-1]
        off = delta(segment.ack, first.ack)
        if segment.flags & RST:
            return []
        return [reply(segment, (OK if not off else b"") + bytes(1000))]

    network = Network(Check(kind="http", interval_ms=1000, timeout_ms=300, fall=2, expect="x"),
                      backends=1, b1=serves_much)
    network.run(1100)

    assert network.counts(1)[1] >= 1
    assert len(network.resets) == sum(network.counts(1))


def test_shares_ramp_up_and_the_operator_has_the_last_word() -> None:
    check = Check(kind="http", interval_ms=1000, timeout_ms=300, fall=1, rise=1, ramp_ms=16_000)
    network = Network(check, b1=refuses)
    network.run(2000)
    first, second = network.service.pool
    first.standing = first.standing._replace(operator=Operator.DRAINING)
    network.answers.clear()
    network.run(4000)

    assert first.standing == Standing(Operator.DRAINING, True, first.standing.steps)
    assert 1 < first.standing.steps < RAMP_STEPS
    network.run(20_000)
    assert first.standing.steps == RAMP_STEPS
    assert network.service.pool.shares().weights == {1: 0, 2: 1}
    assert second.standing == Standing()


def test_backends_that_come_are_checked_and_those_that_go_are_not() -> None:
    network = Network(b2=refuses)
    network.run(3000)
    assert network.states() == [True, False]

    network.datapath.update(network.service, [backend(1), backend(3)])
    network.routes(OWN)
    network.run(3000)
    network.handoffs.clear()
    network.run(3000)

    assert {each.packet.dst[3] - 20 for each in network.handoffs} == {1, 3}


def test_the_secret_of_now_is_used() -> None:
    network = Network(backends=1)
    network.datapath.secrets = Secrets(bytes(range(16)))
    network.run(1100)

    first = network.handoffs[0]
    ends = OWN + VIP.packed + first.five_tuple[8:]
    assert cookie.check(network.datapath.secrets, ends, delta(first.seq, 1), delta(first.ack, 1),
                        NOW_MS) is not None




def test_a_backend_whose_clients_repeat_themselves_is_checked_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = Network(Check(kind="http", interval_ms=60_000, timeout_ms=300))
    first, second = network.service.pool
    network.run(2000)
    sent = len(network.handoffs)

    first.handoffs += 100
    second.handoffs += 5
    second.unanswered += 3
    with caplog.at_level(logging.WARNING):
        network.run(1100)

    assert [segment.packet.dst[3] - 20 for segment in network.handoffs[sent:]] == [2]
    assert "backend 2 of web (192.168.33.22) is suspect: most clients repeat" in caplog.text
    assert network.states() == [True, True]  # the check was passed
    caplog.clear()
    second.handoffs += 5
    second.unanswered += 5
    network.run(1100)
    assert len(network.handoffs) == sent + 2
    assert not caplog.text  # clients could fill the log


@pytest.mark.parametrize(("growth", "expected"), [
    ([(3, 3)], True),
    ([(2, 2)], False),  # too few
    ([(6, 3)], False),  # no more than half
    ([(2, 2), (1, 1)], True),  # together
    ([(100, 0), (4, 0), (0, 3)], True),  # what is said late
    ([(100, 0), (0, 3)], True),
    ([(1, 1), (0, 0), (0, 0), (0, 0), (2, 2)], False),  # longer ago than is looked at
    ([(1000, 300)] * 4, False),  # a lossy network
])
def test_several_and_more_than_half_make_a_backend_suspect(
    growth: list[tuple[int, int]], expected: bool
) -> None:
    suspicion = Suspicion(70, 30)
    handoffs, unanswered = 70, 30
    found = []
    for more, silent in growth:
        handoffs, unanswered = handoffs + more, unanswered + silent
        found.append(suspicion.look(handoffs, unanswered))

    assert found == [False] * (len(growth) - 1) + [expected]


def configure(network: Network, check: Check) -> None:
    """Have the service checked in another way."""
    network.service.config = replace(network.service.config, check=check)
    network.monitor.follow([network.service])


def test_what_is_known_of_backends_stays_when_checks_become_others() -> None:
    network = Network(_1=refuses)
    network.run(3000)
    assert network.states() == [False, True]

    configure(network, replace(CHECK, path="/other", rise=6))
    network.run(2000)

    assert network.states() == [False, True]
    assert network.handoffs[-1].payload.startswith(b"GET /other ")
    network.answers[1] = serves
    network.run(1200)
    assert network.states() == [False, True]  # a few in a row are not enough any more
    network.run(6000)
    assert network.states() == [True, True]


def test_nothing_speaks_against_a_backend_that_is_checked_no_more() -> None:
    network = Network(_1=refuses)
    network.run(3000)
    network.monitor.changed.clear()

    configure(network, Check())
    sent = len(network.handoffs)
    network.run(3000)

    assert network.states() == [True, True]
    assert network.monitor.changed == {network.service}
    assert len(network.handoffs) == sent
    assert network.monitor.vips == set()
    configure(network, CHECK)
    network.run(3000)
    assert network.states() == [False, True]


def test_a_backend_that_has_moved_is_known_by_nothing_that_was_found_at_its_old_address() -> None:
    network = Network(b1=lambda *_: [])
    network.run(3000)
    before = network.states()

    moved = replace(network.service.config.backends[0], address=IPv4Address("192.0.2.29"))
    network.datapath.update(network.service, [moved, network.service.config.backends[1]])
    network.routes(OWN)
    network.run(1200)

    assert before == [False, True]
    assert network.states() == [True, True]
    assert network.counts(1)[1] == 0


def test_metrics_are_read_while_services_come(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    network.run(2000)
    monkeypatch.setattr(network.monitor, "_requests", {})  # as before the newest came

    assert network.monitor.samples()


def test_whoever_looks_for_causes_hears_when_a_check_says_something_else() -> None:
    network = Network(b1=lambda net, seg: [])
    heard: list[tuple[int, bool]] = []
    network.monitor.on_doubt = lambda backend, is_suspect: heard.append((backend.id, is_suspect))

    network.run(5000)
    assert heard == [(1, False)]  # the first that fails; all others fail alike
    network.answers.pop(1)
    network.run(5000)

    assert heard == [(1, False), (1, False)]
