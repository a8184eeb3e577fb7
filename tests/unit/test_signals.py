"""What a daemon tells its service manager, and when."""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from common.engine.signals import Watchdog

PATIENCE_S = 20


def fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str],
        times_ms: list[int]) -> list[int]:
    """At which of the times systemd was told."""
    path = str(tmp_path / "notify")
    told = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        watchdog = Watchdog(environment)
        for now_ms in times_ms:
            watchdog.feed(now_ms)
            try:
                assert manager.recv(100) == b"WATCHDOG=1"
            except BlockingIOError:
                continue
            told.append(now_ms)
    return told


def test_the_watchdog_is_fed_twice_in_the_time_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_ms = list(range(1000, 20_000, 100))

    told = fed(tmp_path, monkeypatch, {"WATCHDOG_USEC": "10000000"}, times_ms)

    assert told == [1000, 6000, 11_000, 16_000]


def test_a_clock_that_is_set_back_does_not_starve_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = fed(tmp_path, monkeypatch, {"WATCHDOG_USEC": "10000000"}, [50_000, 1000, 1100, 6000])

    assert told == [50_000, 1000, 6000]


@pytest.mark.parametrize("environment", [
    {}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"},
    {"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid() + 1)},
])
def test_nobody_is_told_where_nobody_asked_for_it(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fed(tmp_path, monkeypatch, environment, [1000, 20_000]) == []


def test_a_service_manager_that_reads_nothing_keeps_no_packet_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
        manager.bind(path)
        others.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                others.sendto(b"READY=1", path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        feeding = threading.Thread(
            target=lambda: Watchdog({"WATCHDOG_USEC": "1000000"}).feed(1000), daemon=True)

        feeding.start()
        feeding.join(PATIENCE_S)

        assert not feeding.is_alive()
