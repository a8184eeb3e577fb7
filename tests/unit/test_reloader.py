"""A reload step by step: what is asked of the program, what is said to whom, and in which order."""

import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.engine import instances, lock
from common.engine.claims import Claim
from common.engine.host import Host
from common.engine.instances import Outcome
from common.engine.lock import Locks
from common.engine.reload import Refused, Reloader
from common.engine.sources import Sources
from common.settings import ConfigError

ENOUGH = 2000  # turns of the loop, of 10 ms at most


class Live:
    """A program; it notes what it is asked for."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.error: Exception | None = None
        self.fails_in = ""
        self.files: tuple[Sequence[str], Sequence[str]] = ([], [])
        self.lines = ("a: 1 → 2",)
        self.claims: Sequence[Claim] = ()
        self.released: Sequence[str] = ()
        self.file, self.secret_file = "x.toml", "secret"
        self.is_ready = True
        self.left: Left | None = None

    def read(self, whole: bool) -> "Live":
        self.steps.append("read" if whole else "read named")
        if self.error:
            raise self.error
        return self

    def watched(self) -> tuple[Sequence[str], Sequence[str]]:
        return self.files

    def emit(self) -> str:
        return "a = 2\n"

    def tidy(self) -> "Left | None":
        left, self.left = self.left, None
        return left

    def begin(self) -> None:
        self._step("begin")

    def before(self, host: Host) -> None:
        self._step("before")

    def apply(self) -> None:
        self._step("apply")

    def after(self, host: Host) -> None:
        self._step("after")

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.fails_in:
            raise OSError(1, name)


class Left:
    """What has left a program. had_lock: whether its lock was held while it was undone."""

    locks: Sequence[str] = ("vip/a",)
    had_lock: bool | None = None

    def on_host(self, host: Host) -> None:
        self.had_lock = lock.is_taken("vip/a")


class Secrets:
    def read(self, *files: str) -> None:
        self.files = files


class Bench:
    def __init__(self) -> None:
        self.live, self.secrets = Live(), Secrets()
        given: Any = (Host("balancer", 33), Locks(), self.live, self.secrets)
        self.locks = given[1]
        self.reloader = Reloader("balancer", *given)
        self.sources = Sources(self.reloader.sources, self._on_fault)

    def _on_fault(self, source: object) -> None:
        raise

    def until(self, holds: Callable[[], bool]) -> None:
        for _ in range(ENOUGH):
            if holds():
                return
            self.sources.wait(0.01)
        raise TimeoutError(self.live.steps)

    def reload(self) -> Outcome:
        found: list[Outcome] = []
        self.reloader.reload(found.append)
        self.until(lambda: bool(found))
        return found[0]

    def counts(self) -> list[float]:
        return [sample.value for sample in self.reloader.samples()]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(instances, "DIRECTORY", tmp_path / "running")
    monkeypatch.setattr(lock, "DIRECTORY", tmp_path / "locks")
    return Bench()


def test_what_is_right_is_taken_step_by_step(bench: Bench, tmp_path: Path) -> None:
    assert bench.reload() == Outcome(True, ("a: 1 → 2",))

    assert bench.live.steps == ["read", "begin", "before", "apply", "after"]
    assert bench.secrets.files == ("x.toml", "secret")
    assert bench.counts() == [1, 0]
    told, = (tmp_path / "running").glob("balancer-33.*.json")
    assert json.loads(told.read_text())["ok"] is True
    running, = (tmp_path / "running").glob("balancer-33.*.toml")
    assert running.read_text() == "a = 2\n"
    assert running.stat().st_mode & 0o777 == 0o600
    bench.reloader.close()
    assert not list((tmp_path / "running").iterdir())


@pytest.mark.parametrize("error, line", [
    (ConfigError("x.toml", "port", 0, "a port"), "x.toml: port = 0: expected a port"),
    (Refused(["queue: 1 → 2 (takes a restart)"]), "queue: 1 → 2 (takes a restart)"),
    (KeyError("ours"), "'ours'"),
])
def test_what_is_wrong_changes_nothing_and_the_next_one_is_taken(
    bench: Bench, error: Exception, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.live.error = error

    assert bench.reload() == Outcome(False, (line,))
    assert bench.live.steps == ["read"]
    assert bench.counts() == [0, 1]
    assert f"the configuration and the secrets in use are kept: {line}" in caplog.text

    bench.live.error = None
    assert bench.reload().ok


@pytest.mark.parametrize("step, done", [
    ("before", ["read", "begin", "before"]),
    ("apply", ["read", "begin", "before", "apply"]),
    ("after", ["read", "begin", "before", "apply", "after"]),
])
def test_a_step_that_fails_is_said(
    bench: Bench, step: str, done: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    bench.live.fails_in = step

    outcome = bench.reload()

    assert not outcome.ok
    assert step in outcome.lines[-1]
    assert bench.live.steps == done
    assert ("in use are kept" in caplog.text) == (step != "after")


def test_what_another_instance_has_is_refused_and_locks_are_given_back(bench: Bench) -> None:
    other = Locks()
    other.take("vip/b")
    bench.live.claims = [Claim("vip/a", "vip", "a", "a VIP of its own"),
                         Claim("vip/b", "vip", "b", "a VIP of its own")]

    outcome = bench.reload()

    assert "another balancer" in outcome.lines[0]
    assert bench.live.steps == ["read", "begin"]
    assert not lock.is_taken("vip/a")
    other.release()
    assert bench.reload().ok
    assert lock.is_taken("vip/a")
    bench.locks.release()


def test_a_lock_is_held_until_what_it_was_for_is_off_the_host(bench: Bench) -> None:
    left = Left()
    bench.locks.take("vip/a")
    bench.live.left = left
    bench.until(lambda: left.had_lock is not None and not lock.is_taken("vip/a"))

    bench.locks.take("vip/a")
    bench.live.released = ("vip/a",)
    held: list[bool] = []
    bench.live.after = lambda host: held.append(  # type: ignore[method-assign]
        lock.is_taken("vip/a"))
    bench.reload()

    assert left.had_lock
    assert held == [True]
    assert not lock.is_taken("vip/a")


def test_new_ways_are_waited_for_but_not_for_ever(bench: Bench) -> None:
    bench.live.is_ready = False
    found: list[Outcome] = []
    bench.reloader.reload(found.append)
    bench.until(lambda: "before" in bench.live.steps)
    for _ in range(5):
        bench.sources.wait(0.01)
    assert "apply" not in bench.live.steps
    bench.live.is_ready = True
    bench.until(lambda: bool(found))

    bench.live.is_ready = False
    assert bench.reload().ok


def test_where_nothing_can_be_written_who_asks_is_answered(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "running").write_text("no directory")

    for _ in range(2):
        outcome = bench.reload()

        assert "the new configuration is in use, but not all" in outcome.lines[0]


def test_who_asks_meanwhile_hears_of_the_next_one(bench: Bench) -> None:
    first: list[Outcome] = []
    second: list[Outcome] = []
    bench.reloader.reload(first.append)
    bench.reloader.reload(second.append)
    bench.until(lambda: bool(second))

    assert len(first) == 1
    assert bench.live.steps.count("read") == 2


def test_files_that_have_changed_and_settled_are_read_once(bench: Bench, tmp_path: Path) -> None:
    configured, named = tmp_path / "x.toml", tmp_path / "backends"
    configured.write_text("a")
    named.write_text("b")
    bench.live.files = [str(configured)], [str(named)]
    bench.reload()  # which notes what they are
    bench.live.steps.clear()
    for _ in range(300):
        bench.sources.wait(0.01)
    assert bench.live.steps == []

    named.write_text("bb")
    bench.until(lambda: "after" in bench.live.steps)
    assert bench.live.steps[0] == "read named"
    bench.live.steps.clear()
    draft = tmp_path / "draft"
    draft.write_text("c")
    draft.replace(configured)
    bench.live.error = ConfigError("x.toml", "a", 1, "b")
    bench.until(lambda: bench.counts() == [2, 1])
    for _ in range(300):  # it is wrong, which is said once
        bench.sources.wait(0.01)
    assert bench.live.steps == ["read"]


def test_systemd_is_told(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        bench.live.error = Refused(["no"])
        bench.reload()
        bench.live.error = None
        bench.reload()
        manager.setblocking(False)
        said = [manager.recv(4096).decode().splitlines() for _ in range(4)]

    assert [lines[0] for lines in said] == ["RELOADING=1", "READY=1"] * 2
    assert said[0][1].startswith("MONOTONIC_USEC=")
    assert said[1][1] == "STATUS=the configuration and the secrets in use are kept: no"
    assert said[3][1] == "STATUS=ready"
