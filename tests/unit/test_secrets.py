"""The secret's file: its lines, how long a key in it holds, and that its seed stays."""

import json
import logging
import time
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from balancer import cli
from balancer.pool.hashing import hash_by
from balancer.tools import keygen
from common.capture import pcap
from common.cluster import cookie
from common.cluster.cookie import Offer
from common.cluster.secrets import KEEP_S, SecretFile, Secrets, load
from common.engine.secrets import SecretReader
from common.wire import tcp

CURRENT, PREVIOUS, SEED = (bytes([number]) * 16 for number in (1, 2, 3))
NOW_S = 1_700_000_000


class Keyed:
    """As a data path."""

    secrets = Secrets(CURRENT, PREVIOUS)


class Config:
    """As the programs' own."""

    file = "file"

    def __init__(self, secret_file: Path) -> None:
        self.secret_file = str(secret_file)


def write(path: Path, file: SecretFile) -> Path:
    path.write_text(file.emit())
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("file", [
    SecretFile(Secrets(CURRENT)), SecretFile(Secrets(CURRENT), None, SEED),
    SecretFile(Secrets(CURRENT, PREVIOUS), NOW_S), SecretFile(Secrets(CURRENT, PREVIOUS), 0, SEED),
])
def test_what_is_written_is_read(file: SecretFile) -> None:
    assert SecretFile.parse(file.emit(), 7) == file


def test_a_file_without_a_time_lets_its_previous_key_end_an_hour_after_its_change() -> None:
    file = SecretFile.parse(Secrets(CURRENT, PREVIOUS).emit(), NOW_S)

    assert file.keys_at(NOW_S + KEEP_S - 1) == (CURRENT, PREVIOUS)
    assert file.keys_at(NOW_S + KEEP_S) == (CURRENT, None)


@pytest.mark.parametrize("text, expected", [
    ("", "0 keys"), (f"seed {SEED.hex()}", "0 keys"),
    (f"{CURRENT.hex()}\nseed 00", "the seed in it has not 32"),
    (f"{CURRENT.hex()}\nuntil soon", "unix time"),
    (f"{CURRENT.hex()}\nseed {SEED.hex()}\nseed {SEED.hex()}", "two lines with `seed`"),
    (f"{CURRENT.hex()}\nsalt {SEED.hex()}", "not made of hex digits"),
])
def test_what_makes_no_sense_is_refused_and_not_shown(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as refused:
        SecretFile.parse(text, 0)

    assert expected in str(refused.value) or "3 keys" in str(refused.value)
    assert CURRENT.hex() not in str(refused.value)


def test_a_new_file_has_a_seed_which_stays_whatever_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    first = keygen.rotate(path)
    keygen.rotate(path)
    last = keygen.rotate(path, keep_s=600)

    assert len(first.seed) == 16
    assert load(path) == last
    assert last.seed == first.seed
    assert last.until_s is not None
    assert 0 <= last.until_s - time.time() <= 600


def test_a_file_without_a_seed_gets_one_only_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "secret", SecretFile(Secrets(CURRENT)))

    cli.main(["keygen", str(path)])
    without = load(path)
    cli.main(["keygen", "--seed", str(path)])

    assert without.seed == b""
    assert len(load(path).seed) == 16


def test_the_previous_key_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time, "time", lambda: now_s)
    now_s = float(NOW_S)
    path = write(tmp_path / "secret",
                 SecretFile(Secrets(CURRENT, PREVIOUS), NOW_S + 100))
    keyed = Keyed()
    reader = SecretReader(Config(path), keyed)
    read(reader)

    assert keyed.secrets == (CURRENT, PREVIOUS)
    assert reader.deadline_s is not None
    assert reader.deadline_s <= time.monotonic() + 60  # unix time may be set
    now_s += 99
    reader.on_deadline()
    assert keyed.secrets == (CURRENT, PREVIOUS)
    now_s += 1
    with caplog.at_level(logging.INFO):
        reader.on_deadline()

    assert keyed.secrets == (CURRENT, None)
    assert reader.deadline_s is None
    assert "is not accepted any more" in caplog.text
    reader.close()


def test_a_seed_that_has_changed_waits_for_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "secret", SecretFile(Secrets(CURRENT)))
    reader = SecretReader(Config(path), Keyed())
    read(reader)
    write(path, SecretFile(Secrets(CURRENT), None, SEED))

    reader.read()
    read(reader)

    assert "takes it when it starts" in caplog.text
    reader.close()


def read(reader: SecretReader) -> None:
    """Let it take what its thread has read."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        try:
            return reader.on_ready()
        except BlockingIOError:
            time.sleep(0.01)
    raise TimeoutError


def test_explain_and_replay_hash_by_the_file_s_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "secret", SecretFile(Secrets(CURRENT), None, SEED))
    backends = [flag for number in range(20, 29) for flag in ("--backend", f"192.0.2.{number}")]
    ends = bytes((192, 0, 2, 1)) + bytes((192, 168, 33, 10)) + b"\x9c\x40\0\x50"
    isn = cookie.encode(Secrets(CURRENT), ends, 6, cookie.epoch_at(NOW_S * 1000),
                        Offer(1460, True, 7))
    urls = [f"/{number}" for number in range(30)]
    expected = [hash_by(SEED)(url.encode()) for url in urls]

    told, sent = [], []
    for url in urls:
        flags = ["--secret-file", str(path), *backends]
        assert cli.main(["explain", "--json", *flags, url]) == 0
        told.append(json.loads(capsys.readouterr().out))
        packet = tcp.emit(ends, 7, isn + 1, tcp.ACK, payload=b"GET %s HTTP/1.1\r\n\r\n" %
                          url.encode())
        pcap.write(tmp_path / "in.pcap", [(NOW_S * 10**9, packet)])
        cli.main(["replay", *flags, str(tmp_path / "in.pcap"), str(tmp_path / "out.pcap")])
        (out,) = pcap.read(tmp_path / "out.pcap")
        sent.append((out.packet or b"")[16:20])
        capsys.readouterr()

    assert [answer["hash"] for answer in told] == expected
    assert sent == [IPv4Address(answer["backend_address"]).packed for answer in told]


def test_explain_says_where_it_cannot_know_the_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["explain", "--secret-file", str(tmp_path / "none"), "/"])

    assert "the cluster's seed is not known here" in capsys.readouterr().err
