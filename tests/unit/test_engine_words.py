"""What the engine says: failures and decisions at a bounded rate, libraries when they warn."""

import errno
import logging
from collections.abc import Iterator

import pytest

from common.engine import log
from common.engine.failures import EVERY_S, Failures
from common.engine.narrator import MOST, Narrator, narrated
from common.verdict import DROP, PASS, DropReason, Event, Verdict, send
from common.wire import tcp

FIRST, SECOND = b"\x0a\0\0\1", b"\x0a\0\0\2"
UNREACHABLE = OSError(errno.ENETUNREACH, "")
REFUSED = OSError(errno.EPERM, "")


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_first_failure_is_said_at_once_with_errno_and_destination(caplog) -> None:
    failures = Failures(Clock())

    failures.note(UNREACHABLE, FIRST)

    assert caplog.messages == [
        "1 packet to 10.0.0.1 was not sent: Network is unreachable (errno 101); look at "
        "ip route get 10.0.0.1"]


def test_what_follows_is_counted_and_said_together(caplog) -> None:
    clock = Clock()
    failures = Failures(clock)
    for _ in range(1000):
        failures.note(UNREACHABLE, FIRST)
    for _ in range(2):
        failures.note(REFUSED, SECOND)
    before = list(caplog.messages)
    clock.now_s = EVERY_S

    failures.say()
    failures.say()

    assert len(before) == 1
    assert [message.split(":")[0] for message in caplog.messages[1:]] == [
        "999 packets to 10.0.0.1 were not sent", "2 packets to 10.0.0.2 were not sent"]
    assert failures.total == 1002


def test_a_flood_of_destinations_is_a_few_lines(caplog) -> None:
    clock = Clock()
    failures = Failures(clock)
    for number in range(10_000):
        failures.note(UNREACHABLE, number.to_bytes(4))
    clock.now_s = EVERY_S

    failures.say()

    assert len(caplog.messages) < 20
    assert caplog.messages[-1] == "9983 packets to other destinations were not sent"


SYN = tcp.emit(FIRST + SECOND + b"\x9c\x40\0\x50", 1, 0, tcp.SYN)


def _answering(verdict: Verdict) -> Narrator:
    return Narrator(lambda packet, now_ms: verdict)


@pytest.mark.parametrize("verdict, words", [
    (PASS, "pass, not_ours"),
    (DROP[DropReason.BAD_FLAGS], "drop, bad_flags"),
    (send(Event.SYN_ANSWERED, SYN),
     "send, syn_answered; sent 10.0.0.1:40000 > 10.0.0.2:80"),
])
def test_a_decision_is_said_with_its_packet(verdict: Verdict, words: str, caplog) -> None:
    caplog.set_level(logging.DEBUG)

    assert _answering(verdict)(SYN, 0) is verdict

    assert caplog.messages == [f"10.0.0.1:40000 > 10.0.0.2:80 S, 0 bytes: {words}"]


def test_no_more_than_some_decisions_are_said_in_a_second(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    on_packet = _answering(PASS)

    for _ in range(MOST + 50):
        on_packet(SYN, 999)
    on_packet(SYN, 1000)

    assert len(caplog.messages) == MOST + 2
    assert caplog.messages[MOST] == "50 more packets were decided about"


@pytest.mark.parametrize("octets", [b"", b"\x45", bytes(20), bytes(range(60))])
def test_whatever_comes_can_be_said(octets: bytes, caplog) -> None:
    caplog.set_level(logging.DEBUG)

    _answering(DROP[DropReason.MALFORMED_IP])(octets, 0)

    assert len(caplog.messages) == 1


def test_decisions_cost_nothing_where_nobody_wants_to_hear_of_them() -> None:
    def on_packet(packet: bytes, now_ms: int) -> Verdict:
        return PASS

    assert narrated(on_packet) is on_packet


@pytest.fixture
def _levels() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for package in ("balancer", "common", "packetbridge"):
        logging.getLogger(package).setLevel(logging.NOTSET)


@pytest.mark.usefixtures("_levels")
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_level_is_ours_and_libraries_only_warn(level: str) -> None:
    log.set_up(level, "text")

    number = logging.getLevelNamesMapping()[level.upper()]
    assert logging.getLogger("balancer.daemon").getEffectiveLevel() == number
    assert logging.getLogger("common.engine.narrator").isEnabledFor(logging.DEBUG) == (
        level == "debug")
    assert logging.getLogger("pyroute2.netlink").getEffectiveLevel() == max(number, logging.WARNING)
