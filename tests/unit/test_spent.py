"""Cookies that are spent, and why handoffs are refused."""

import logging
from random import Random

import pytest

from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.counters import Sample
from common.verdict import DropReason, Event
from common.wire import tcp
from common.wire.tcp import ACK, PSH, SYN
from packetbridge.datapath import Datapath
from packetbridge.modes.spent import SPENT_IN_BUCKET, MemoryBuckets, SpentCookies, bucket_count
from tests.fuzz import datapaths
from tests.fuzz.datapaths import BRIDGE, CLIENT, DSCP, SECRETS, SERVER, SERVER_PORT, START_MS

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(("handoffs", "count"), [
    (1, 1), (15, 1), (16, 2), (30, 2), (31, 4), (1_000_000, 1 << 17),
])
def test_there_is_room_for_as_many_as_wished_and_less_than_twice_as_many_buckets(handoffs, count):
    assert bucket_count(handoffs) == count


def test_what_was_added_is_in_and_nothing_else():
    random = Random(1)
    spent = SpentCookies(MemoryBuckets(10_000), MemoryBuckets(5_000))
    added = [random.getrandbits(64) for _ in range(2000)]

    for each in added:
        spent.add(each)

    assert all(each in spent for each in added)
    assert not any(random.getrandbits(64) in spent for _ in range(10_000))


def test_a_full_bucket_forgets_the_oldest_and_refuses_nobody():
    spent = SpentCookies(MemoryBuckets(1))
    hashes = [number << 32 for number in range(SPENT_IN_BUCKET + 3)]  # 0: a fingerprint like all

    for each in hashes:
        spent.add(each)
        spent.add(each)

    assert [each in spent for each in hashes] == [False] * 3 + [True] * SPENT_IN_BUCKET


# --- why they are refused ---


class Bridge:
    """A bridge, and clients of a balancer that has another clock or secret."""

    def __init__(self, ahead_s: int = 0, secrets: Secrets = SECRETS) -> None:
        self.datapath: Datapath = datapaths.bridge()
        self.ahead_s, self.secrets = ahead_s, secrets
        self.now_ms, self._port = START_MS, 1024

    def handoff(self, opens: bool = False) -> Event | DropReason:
        """A first segment, which comes 30 ms after its SYN. opens: the server answers."""
        self._port += 1
        ends, isn = datapaths.ends(self._port), self._port * 1000
        epoch = cookie.epoch_at(self.now_ms - 30 + self.ahead_s * 1000)
        made = cookie.encode(self.secrets, ends, isn, epoch, Offer(1460, True, 7))
        verdict = self.datapath.on_packet(tcp.emit(
            datapaths.ends(self._port, BRIDGE), isn + 1, made + 1, ACK | PSH, payload=REQUEST,
            tos=DSCP << 2), self.now_ms)
        if opens:
            self.datapath.on_packet(tcp.emit(
                SERVER.packed + CLIENT + SERVER_PORT.to_bytes(2) + self._port.to_bytes(2), 5,
                isn + 1, SYN | ACK), self.now_ms)
        return verdict.reason

    def run(self, seconds: int, each_second: int = 1, opens: bool = False) -> None:
        """Handoffs for some seconds."""
        for _ in range(seconds):
            for _ in range(each_second):
                self.handoff(opens)
            self.now_ms += 1000
            self.datapath.on_tick(self.now_ms)

    def value(self, name: str, **labels: str) -> float:
        """A sample's."""
        (found,) = (each for each in self.datapath.samples()
                    if isinstance(each, Sample) and (each.name, each.labels) == (name, labels))
        return found.value


@pytest.mark.parametrize(("ahead_s", "words", "cause"), [
    (300, "ahead of", "clock_ahead"), (130, "ahead of", "clock_ahead"), (-300, "behind", "late"),
    (600, "ahead of", "clock_ahead"),
])
def test_a_balancer_with_another_clock_is_told_of(caplog, ahead_s, words, cause):
    bridge = Bridge(ahead_s)

    bridge.run(40)

    (record,) = caplog.records
    assert f" s {words} this host's" in record.getMessage()
    assert bridge.value("handoffs_refused", cause=cause) == 40
    assert abs(bridge.value("balancer_clock_ahead_seconds") - ahead_s) <= 32
    bridge.ahead_s = 0
    bridge.run(130, opens=True)
    assert bridge.value("balancer_clock_ahead_seconds") == 0


def test_the_longer_it_is_watched_the_more_exactly_the_clock_is_known():
    bridge = Bridge(300)

    bridge.run(63)

    assert abs(bridge.value("balancer_clock_ahead_seconds") - 300) <= 2


def test_another_secret_is_told_of(caplog):
    bridge = Bridge(secrets=Secrets(bytes(16)))

    bridge.run(40)

    assert ["another secret" in record.getMessage() for record in caplog.records] == [True]
    assert bridge.value("handoffs_refused", cause="secret_or_forged") == 40
    assert bridge.value("balancer_clock_ahead_seconds") == 0


@pytest.mark.parametrize(("ahead_s", "secrets"), [
    (-300, SECRETS), (0, Secrets(bytes(16))),
], ids=["clients that wait long", "forged ones"])
def test_where_others_open_connections_nothing_is_wrong_with_the_balancer(
    caplog, ahead_s, secrets
):
    bridge = Bridge()

    for _ in range(40):
        bridge.ahead_s, bridge.secrets = 0, SECRETS
        bridge.handoff(opens=True)
        bridge.ahead_s, bridge.secrets = ahead_s, secrets
        bridge.run(1)

    assert not caplog.records


def test_a_flood_of_forged_ones_is_looked_at_in_part(caplog):
    bridge = Bridge(secrets=Secrets(bytes(16)))

    with caplog.at_level(logging.WARNING):
        bridge.run(5, each_second=100)

    assert bridge.value("handoffs_refused", cause="secret_or_forged") == 50
