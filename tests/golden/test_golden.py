"""The golden cases, through every engine: the same octets, verdicts and reasons."""

import ipaddress
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from balancer import config as balancer_config
from balancer.datapath import Datapath as Balancer
from common import replay
from common.cookie import Secrets
from common.pcap import Captured
from common.settings import Table
from packetbridge import config as bridge_config
from packetbridge.datapath import Datapath as Bridge
from tests.golden import generate
from tests.golden.case import read_capture

FOLDER = Path(__file__).parent
CASES = sorted(path.parent for path in FOLDER.glob("*/*/case.toml"))


def portable(case: dict[str, Any]) -> replay.Datapath:
    """The Python data path that a case asks for."""
    table = Table("case.toml", case["config"])
    secrets = Secrets(*(bytes.fromhex(secret) for secret in case["secrets"]))
    if case["program"] == "balancer":
        return Balancer(balancer_config.read(table), secrets, random=Random(1))
    foreign = frozenset(
        ipaddress.IPv4Address(server).packed for server in case.get("foreign_servers", ())
    )
    return Bridge(bridge_config.read(table), secrets, random=Random(1), foreign_servers=foreign)


ENGINES: list[Callable[[dict[str, Any]], replay.Datapath]] = [portable]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
@pytest.mark.parametrize("folder", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_case(
    folder: Path, engine: Callable[[dict[str, Any]], replay.Datapath]
) -> None:
    case = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
    received = [
        Captured(time_ms * 1_000_000, packet)
        for time_ms, packet in read_capture(folder / "in.pcap")
    ]

    steps = list(replay.replay(engine(case), received, run_on_ms=case["run_on_ms"]))

    verdicts = [_words(step) for step in steps if step.verdict is not None]
    assert verdicts == case["verdicts"], case["sentence"]
    sent = [(step.time_ns // 1_000_000, packet) for step in steps for packet in step.sent]
    expected = read_capture(folder / "out.pcap")
    assert _readable(sent) == _readable(expected), case["sentence"]
    assert sent == expected, case["sentence"]


def test_the_cases_are_what_the_generator_writes(tmp_path: Path) -> None:
    generate.write_all(tmp_path)

    for program in ("balancer", "packetbridge"):
        assert _tree(FOLDER / program) == _tree(tmp_path / program)


def test_there_are_cases_enough() -> None:
    assert len(CASES) >= 50


def _words(step: replay.Step) -> str:
    """A verdict as case.toml has it."""
    assert step.verdict is not None
    words = f"{step.verdict.action.value} {step.verdict.reason.value}"
    return f"{words} {len(step.sent)}" if step.verdict.action.value == "send" else words


def _readable(packets: list[tuple[int, bytes]]) -> list[str]:
    """Packets by their fields, so that a difference can be read."""
    from scapy.layers.inet import IP

    return [f"{time_ms} {IP(packet)!r}" for time_ms, packet in packets]


def _tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*")) if path.is_file()
    }
