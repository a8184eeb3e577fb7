"""A user of the host who is not root, and whoever reaches the metrics' port."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.cluster.secrets import load_secrets
from common.control import server
from common.control.server import End, Server
from common.counters import Sample, new_counters
from common.engine import lock, metrics
from common.engine.lock import Locks

NOBODY = 65534
UNITS = sorted(Path(__file__).parents[2].glob("lab/systemd/l3dsr-[bp]*.service"))


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "DIRECTORY", tmp_path / "locks")


def as_nobody(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code as a user without rights."""
    return subprocess.run([sys.executable, "-c", code, *words], user=NOBODY, group=NOBODY,
                          extra_groups=(), text=True, capture_output=True, check=False)


# --- locks ---


@pytest.mark.root
@pytest.mark.usefixtures("own_locks")
def test_no_user_can_take_a_name_before_the_program() -> None:
    names = ["vip/192.168.33.10", "balancer-33", "packetbridge/server/192.168.33.30:80"]
    sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in names]
    for made, name in zip(sockets, names, strict=True):
        made.bind(f"\0l3dsr/{name}")  # as any user may
        made.listen()
    locks = Locks()

    for name in names:
        locks.take(name)

    assert all(map(lock.is_taken, names))
    locks.release()
    assert not any(map(lock.is_taken, names))
    for made in sockets:
        made.close()


@pytest.mark.root
@pytest.mark.usefixtures("own_locks")
def test_no_user_can_lock_a_name_s_file() -> None:
    locks = Locks()
    locks.take("vip/192.168.33.10")
    (path,) = lock.DIRECTORY.iterdir()
    locks.release()

    tried = as_nobody("import sys; open(sys.argv[1], 'w')", str(path))

    assert "PermissionError" in tried.stderr
    assert lock.DIRECTORY.stat().st_mode & 0o777 == 0o700


@pytest.mark.root
@pytest.mark.usefixtures("own_locks")
def test_a_directory_of_another_user_is_not_trusted() -> None:
    lock.DIRECTORY.mkdir()
    os.chown(lock.DIRECTORY, NOBODY, NOBODY)

    with pytest.raises(PermissionError):
        Locks().take("vip/192.168.33.10")


# --- the secret ---


@pytest.mark.root
def test_a_secret_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("00" * 16 + "\n")
    path.chmod(0o600)
    load_secrets(path)
    os.chown(path, NOBODY, NOBODY)

    with pytest.raises(PermissionError, match="another user"):
        load_secrets(path)


def test_a_secret_that_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    os.mkfifo(path, 0o600)

    with pytest.raises(PermissionError, match="no file"):
        load_secrets(path)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_no_core_of_a_program_is_kept(unit: Path) -> None:
    assert "\nLimitCORE=0\n" in unit.read_text()


# --- metrics ---


class Observed:
    """Counters, and nothing behind them."""

    counters = new_counters()

    def samples(self) -> list[Sample]:
        return []


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where metrics are answered, with little patience."""
    monkeypatch.setattr(server, "MAX_TIME_S", 1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = probe.getsockname()[1]
    running = Server([End(metrics.listen("file", "127.0.0.1", found),
                          {"/metrics": metrics.handler("test", Observed())})])
    yield found
    running.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def scrape(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        content: bytes = answer.read()
        return content


def test_slow_clients_take_no_descriptors_from_the_program(port: int) -> None:
    before = descriptors()
    slow = []
    for _ in range(100):  # fewer than wait to be accepted: one more would try again in a second
        slow.append(socket.create_connection(("127.0.0.1", port)))
        try:
            slow[-1].send(b"GET /metrics HTTP/1.1\r\n")
        except OSError:
            pass  # it was ended already

    answer = scrape(port)

    assert b"l3dsr_test_packets" in answer
    deadline_s = time.monotonic() + 10
    while descriptors() - before - len(slow) > 3 * server.MAX_CONNECTIONS:
        assert time.monotonic() < deadline_s, "the program keeps their descriptors"
        time.sleep(0.05)
    for client in slow:
        client.close()


def test_a_client_that_goes_on_octet_by_octet_is_ended(port: int) -> None:
    began_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as client:
        for octet in b"GET /metrics HTTP/1.1\r\nHost: " + bytes(100).replace(b"\0", b"x"):
            try:
                client.send(bytes([octet]))
            except OSError:
                break
            time.sleep(0.1)

    assert time.monotonic() - began_s < 5
    assert b"l3dsr_test_packets" in scrape(port)
