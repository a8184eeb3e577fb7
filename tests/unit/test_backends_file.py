"""Backends in a file of their own: how it is read, and which ids they get and keep."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from balancer.backends_file import BackendsFiles, Line, Memory, Remembered, give_ids, parse
from balancer.config import Backend, Config, Service
from common.settings import ConfigError

A, B, C = (IPv4Address(f"192.0.2.{number}") for number in (20, 21, 22))


def test_lines_are_read_and_wrong_ones_left_out() -> None:
    lines, faults = parse("# ours\n192.0.2.20\n\n 192.0.2.21 weight=2 # two\nnonsense\n"
                          "192.0.2.22 id=7\n192.0.2.20\n192.0.2.23 color=3\n192.0.2.24 id=0\n"
                          "192.0.2.25 weight=70000\n192.0.2.26:80\n")

    assert lines == [Line(A), Line(B, weight=2), Line(C, id=7)]
    assert [number for number, _ in faults] == [5, 7, 8, 9, 10, 11]
    assert dict(faults)[7] == "'192.0.2.20': expected an address that no other line has"
    assert dict(faults)[8] == "'192.0.2.23 color=3': expected ADDRESS [id=N] [weight=N]"


def test_ids_stay_with_their_addresses_whatever_comes_and_goes() -> None:
    memory: Memory = {}

    first, _ = give_ids([Line(A), Line(B)], [], memory, 127, 0)
    second, _ = give_ids([Line(C), Line(B)], [], memory, 127, 10)
    third, _ = give_ids([Line(B), Line(A), Line(C)], [], memory, 127, 20)

    assert first == [Backend(1, A), Backend(2, B)]
    assert second == [Backend(2, B), Backend(3, C)]
    assert third == [Backend(1, A), Backend(2, B), Backend(3, C)]


def test_an_id_is_given_again_only_when_all_were_given_the_longest_unused_first() -> None:
    memory: Memory = {}
    give_ids([Line(A), Line(B)], [], memory, 2, 0)
    give_ids([Line(B)], [], memory, 2, 10)
    give_ids([], [], memory, 2, 20)

    backends, faults = give_ids([Line(C)], [], memory, 2, 30)

    assert (backends, faults) == ([Backend(1, C)], [])
    assert memory == {str(B): Remembered(2, 20), str(C): Remembered(1)}


def test_written_ids_come_first_and_conflicts_are_said() -> None:
    memory: Memory = {}
    give_ids([Line(A)], [], memory, 127, 0)

    backends, faults = give_ids(
        [Line(A), Line(B, id=5), Line(C, id=5)], [2], memory, 127, 10)

    assert backends == [Backend(1, A), Backend(5, B)]
    assert faults == ["192.0.2.22: expected an id that no other backend has, not 5"]
    assert give_ids([Line(A), Line(B), Line(C)], [], {}, 2, 0)[1] == [
        "192.0.2.22: expected at most 2 backends, as id_bits has it"]


def configured(path: Path, *backends: Backend) -> Config:
    service = Service(name="web", vip=IPv4Address("192.0.2.10"), port=80, backends=backends,
                      backends_file=str(path))
    return Config(services=(service,))


def test_ids_outlive_the_program_and_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    path, directory = tmp_path / "backends", str(tmp_path / "state")
    path.write_text("192.0.2.21\n192.0.2.10\n192.0.2.20\n")
    first, faults = BackendsFiles(directory, keeps=True).resolve(configured(path))
    path.write_text("192.0.2.20\n")
    second, _ = BackendsFiles(directory, keeps=True).resolve(configured(path), first)
    path.unlink()
    third, missing = BackendsFiles(directory, keeps=True).resolve(configured(path), second)
    path.write_text("\n")
    fourth, empty = BackendsFiles(directory, keeps=True).resolve(configured(path), second)

    assert first.services[0].backends == (Backend(1, B), Backend(2, A))
    assert faults == [f"{path}: 192.0.2.10: expected an address that is no VIP, and no other "
                      "backend's"]
    assert second.services[0].backends == (Backend(2, A),)
    assert third.services[0].backends == fourth.services[0].backends == (Backend(2, A),)
    assert missing == [f"{path}: expected a readable file (No such file or directory); the "
                       "backends of web stay"]
    assert empty == [f"{path}: expected a file with at least one backend; the backends of web stay"]
    assert (tmp_path / "state" / "backends.json").stat().st_mode & 0o777 == 0o600


def test_at_the_start_a_file_must_have_a_backend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"backends_file = .*expected a readable file"):
        BackendsFiles(str(tmp_path), keeps=False).resolve(configured(tmp_path / "none"))


def test_backends_of_tables_keep_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "backends"
    path.write_text("192.0.2.21\n192.0.2.20\n")

    resolved, faults = BackendsFiles(str(tmp_path / "state"), keeps=False).resolve(
        configured(path, Backend(1, A)))

    assert resolved.services[0].backends == (Backend(1, A), Backend(2, B))
    assert len(faults) == 1
    assert not (tmp_path / "state").exists()
