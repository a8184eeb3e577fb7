"""Every host's clock is set while connections are open: none of them ends, and new ones work.

The clock is the programs' own alone: what they read as unix time is that of the machine, and as
many seconds more as a file says.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from traffic import PATIENCE_S, Pair, connect, one_answer, request, start_quick

from lab import topology
from lab.node import wait_until
from lab.topology import Lab

CODE = """
import importlib, sys, time
from pathlib import Path
program, path = sys.argv[1], Path(sys.argv[2])
real_ns = time.time_ns
time.time_ns = lambda: real_ns() + int(path.read_text()) * 10**9
time.time = lambda: time.time_ns() / 10**9
sys.exit(importlib.import_module(program + ".cli").main(sys.argv[3:]))
"""
SET_S = [901, -901]

Set = Callable[[int], None]


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Set:
    """Sets the clock of all programs that are started from now on, so many seconds ahead."""
    path = tmp_path / "ahead"
    path.write_text("0")
    monkeypatch.setattr(topology, "program",
                        lambda name: [sys.executable, "-c", CODE, name, str(path)])

    def set_to(seconds: int) -> None:
        draft = path.with_suffix(".new")
        draft.write_text(str(seconds))
        draft.replace(path)

    return set_to


@pytest.fixture
def pair(clock: Set) -> Iterator[Pair]:
    """Before clients without timestamps, whose flows only the tables know."""
    with Lab() as lab:
        lab.client.run(["sysctl", "-qw", "net.ipv4.tcp_timestamps=0"])
        yield start_quick(lab)


def said(pair: Pair, seconds: int) -> bool:
    return all(f"the clock was set by {seconds:+d}.0 s" in process.log()
               for process in (pair.balancer, *pair.bridges))


@pytest.mark.parametrize("set_s", SET_S)
def test_a_clock_that_is_set_ends_no_connection(pair: Pair, clock: Set, set_s: int) -> None:
    with connect(pair.lab.client) as connection:
        connection.sendall(request("/before"))
        before = one_answer(connection).split()[0]

        clock(set_s)
        wait_until(lambda: said(pair, set_s), PATIENCE_S, "all have noticed")
        connection.sendall(request("/after"))

        assert one_answer(connection).split()[:2] == [before, b"/after"]

    def works() -> bool:
        try:
            with connect(pair.lab.client) as fresh:
                fresh.settimeout(2)
                fresh.sendall(request("/fresh"))
                return one_answer(fresh).split()[1] == b"/fresh"
        except OSError:
            return False

    wait_until(works, 5, "programs follow the clock within a second or so")
