"""The loop's sources: what is ready acts, times come, and nothing that takes long keeps others."""

import os
import threading
import time

import pytest

from common.engine.netlink import attribute, attributes_in, messages
from common.engine.sources import Sources
from common.engine.worker import Worker

PATIENCE_S = 20


class Pipe:
    """A source that notes when it is called."""

    def __init__(self, deadline_s: float | None = None) -> None:
        self.read_end, self.write_end = os.pipe()
        self.deadline_s = deadline_s
        self.calls: list[str] = []

    def fileno(self) -> int:
        return self.read_end

    def on_ready(self) -> None:
        self.calls.append(os.read(self.read_end, 100).decode())

    def on_deadline(self) -> None:
        self.calls.append("deadline")
        self.deadline_s = None


class Timer(Pipe):
    """A source that is a time alone."""

    def fileno(self) -> int:
        return -1


def _raise(_: object) -> None:
    raise


def test_what_is_ready_acts_and_nothing_else() -> None:
    first, second = Pipe(), Pipe()
    sources = Sources([first, second], _raise)
    os.write(second.write_end, b"news")

    sources.wait(PATIENCE_S)
    sources.wait(0)

    assert (first.calls, second.calls) == ([], ["news"])


def test_a_deadline_ends_the_waiting_and_is_called_once() -> None:
    timer = Timer(time.monotonic() + 0.01)
    sources = Sources([Pipe(), timer], _raise)

    while not timer.calls:
        sources.wait(PATIENCE_S)
    sources.wait(0)

    assert timer.calls == ["deadline"]


def test_a_source_that_fails_leaves_the_others_to_act() -> None:
    failing, sound = Pipe(), Pipe()
    failing.on_ready = lambda: 1 // 0  # type: ignore[assignment,method-assign]
    failed: list[object] = []
    sources = Sources([failing, sound], failed.append)
    os.write(failing.write_end, b"x")
    os.write(sound.write_end, b"news")

    sources.wait(PATIENCE_S)

    assert (failed, sound.calls) == ([failing], ["news"])


def test_the_owner_of_the_loop_may_end_it_for_a_fault() -> None:
    failing = Pipe()
    failing.on_ready = lambda: 1 // 0  # type: ignore[assignment,method-assign]
    os.write(failing.write_end, b"x")

    with pytest.raises(ZeroDivisionError):
        Sources([failing], _raise).wait(PATIENCE_S)


def test_a_job_that_waits_keeps_nobody_waiting() -> None:
    may_end, results = threading.Event(), []
    worker: Worker[str] = Worker("a test", results.append)
    packets = Pipe()
    sources = Sources([worker, packets], _raise)
    worker.start(lambda: "done" if may_end.wait(PATIENCE_S) else "late")

    for number in range(100):
        os.write(packets.write_end, b"%d" % number)
        sources.wait(PATIENCE_S)
    before = list(results)
    may_end.set()
    while not results:
        sources.wait(PATIENCE_S)

    assert packets.calls == [str(number) for number in range(100)]
    assert (before, results) == ([], ["done"])


def test_a_job_that_fails_is_logged_and_the_next_one_is_done(caplog) -> None:
    results: list[str] = []
    worker: Worker[str] = Worker("counting", results.append)
    sources = Sources([worker], _raise)
    worker.start(lambda: str(1 // 0))
    worker.start(lambda: "done")

    while not results:
        sources.wait(PATIENCE_S)

    assert results == ["done"]
    assert "counting failed" in caplog.messages


def test_attributes_are_read_as_they_were_written() -> None:
    octets = bytes(8) + attribute(1, b"abc") + attribute(2 | 1 << 15, b"") + attribute(3, b"12345")

    assert attributes_in(octets, 8) == {1: b"abc", 2: b"", 3: b"12345"}


@pytest.mark.parametrize("cut", range(28))
def test_messages_cut_short_anywhere_are_read_as_far_as_they_go(cut: int) -> None:
    whole = attribute(1, b"abc") + attribute(2, b"12345678")
    message = (16 + len(whole)).to_bytes(4, "little") + bytes(12) + whole

    for _, _, payload in messages(message[:cut]):
        attributes_in(payload)
