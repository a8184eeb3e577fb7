"""The golden cases, through every engine: the same octets, verdicts and reasons."""

import ipaddress
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from balancer import config as balancer_config
from balancer.datapath import Datapath as Balancer
from balancer.paths import NextHop, Route
from common.capture import replay
from common.capture.pcap import Captured
from common.cluster.cookie import Secrets
from common.settings.table import Table
from common.verdict import DROP, Verdict, send
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
        balancer = Balancer(balancer_config.read(table), secrets, random=Random(1))
        tell_routes(balancer, case)
        return balancer
    foreign = frozenset(
        ipaddress.IPv4Address(server).packed for server in case.get("foreign_servers", ())
    )
    return Bridge(bridge_config.read(table), secrets, random=Random(1), foreign_servers=foreign)


def tell_routes(balancer: Balancer, case: dict[str, Any]) -> None:
    """What the case says of the ways to the backends."""
    told = case.get("own_address")
    own_address = ipaddress.IPv4Address(told).packed if told else b""
    hop = NextHop(1, 65535, b"\2" * 6, b"\4" * 6)
    balancer.paths.set_routes({
        address: Route(own_address, 0, hop) for address in balancer.paths
    })


class FastBalancer:
    """The program in test runs, and what it leaves alone through the data path behind it."""

    def __init__(self, config: balancer_config.Config, secrets: Secrets) -> None:
        from balancer.offload.offload import beside
        from balancer.offload.program import PROGRAM_NAME, Program
        from common.bpf.objects import XDP_DROP, XDP_PASS
        from tests.bpf.loaded import shared

        self._pass, self._drop = XDP_PASS, XDP_DROP
        with shared():
            self._loaded = Program(config, secrets, for_tests=True)
        self._run = self._loaded.object.program(PROGRAM_NAME).test_run
        self.behind, self.offload = beside(self._loaded, config, secrets, random=Random(1))
        self.handled = 0

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict:
        self._loaded.set_test_time(now_ms)
        run = self._run(bytes(12) + b"\x08\0" + packet)
        if run.retval == self._pass:
            return self.behind.on_packet(packet, now_ms)
        self.handled += 1
        reason = self._loaded.last_reason()
        if run.retval == self._drop:
            return DROP[reason]
        sent = run.data[14:]
        return send(reason, sent[:int.from_bytes(sent[2:4])])

    def on_tick(self, now_ms: int) -> list[bytes]:
        return self.behind.on_tick(now_ms)

    def close(self) -> None:
        self._loaded.close()


def fast(case: dict[str, Any]) -> replay.Datapath:
    """The balancer's eBPF program."""
    table = Table("case.toml", case["config"])
    secrets = Secrets(*(bytes.fromhex(secret) for secret in case["secrets"]))
    config = balancer_config.read(table)
    try:
        from common.bpf import libbpf

        libbpf.libbpf()
    except OSError as error:
        pytest.skip(f"no libbpf here: {error}")
    # a table of a million takes longer to make than all else
    balancer = FastBalancer(replace(config, max_flows=min(config.max_flows, 1000)), secrets)
    tell_routes(balancer.behind, case)
    balancer.offload.tell_paths(balancer.behind.paths)
    return balancer


# The bridge's programs have these cases in tests/bpf. Some run on other kernels in every suite.
OF_BALANCER = [folder for folder in CASES if folder.parent.name == "balancer"]
RUNS = [(folder, portable) for folder in CASES] + [
    pytest.param(folder, fast, marks=[pytest.mark.root, *[pytest.mark.kernels] * (not index % 12)])
    for index, folder in enumerate(OF_BALANCER)
]


@pytest.mark.parametrize(
    "folder, engine", RUNS,
    ids=lambda value: value.__name__ if callable(value) else f"{value.parent.name}/{value.name}",
)
def test_case(
    folder: Path, engine: Callable[[dict[str, Any]], replay.Datapath]
) -> None:
    case = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
    received = [
        Captured(time_ms * 1_000_000, packet)
        for time_ms, packet in read_capture(folder / "in.pcap")
    ]

    with ExitStack() as stack:
        datapath = engine(case)
        if isinstance(datapath, FastBalancer):
            stack.callback(datapath.close)
        steps = list(replay.replay(datapath, received, run_on_ms=case["run_on_ms"]))

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
