"""The bridge's golden cases through its programs: the same octets, verdicts and reasons."""

import tomllib
from pathlib import Path

import pytest

from common.capture import replay
from common.capture.pcap import Captured
from tests.bpf.bridge_engine import Spliced
from tests.golden.case import read_capture

pytestmark = pytest.mark.root

CASES = sorted(
    path.parent
    for path in (Path(__file__).parent.parent / "golden" / "packetbridge").glob("*/case.toml")
)
# How many packets of some cases the programs must carry themselves.
CARRIED = {
    "a-half-closed-flow-goes-on": 12,
    "a-long-reply-s-last-window-is-on-its-way-when-both-have-closed": 17,
    "a-reset-of-another-number-than-the-server-expects-ends-nothing": 10,
    "clocks-wrap-on-either-side": 24,
    "damage-is-passed-on-and-not-mended": 7,
    "ecn-and-ttl-are-kept-and-the-dscp-is-taken-off": 8,
    "four-sack-blocks-fit-where-there-are-no-timestamps": 10,
    "numbers-and-clocks-differ-by-constants": 12,
    "numbers-wrap-on-either-side": 26,
    "sack-blocks-are-the-server-s-numbers-at-the-server": 12,
    "what-a-stranger-acknowledges-moves-nothing": 15,
    "windows-are-rescaled-to-what-was-advertised": 23,
}


@pytest.mark.parametrize("folder", CASES, ids=lambda path: path.name)
def test_case(folder: Path) -> None:
    case = tomllib.loads((folder / "case.toml").read_text(encoding="utf-8"))
    received = [
        Captured(time_ms * 1_000_000, packet)
        for time_ms, packet in read_capture(folder / "in.pcap")
    ]
    engine = Spliced(case)

    steps = list(replay.replay(engine, received, run_on_ms=case["run_on_ms"]))
    carried = engine.carried
    engine.close()

    verdicts = [
        f"{step.verdict.action.value} {step.verdict.reason.value}"
        + (f" {len(step.sent)}" if step.verdict.action.value == "send" else "")
        for step in steps if step.verdict is not None
    ]
    assert verdicts == case["verdicts"], case["sentence"]
    sent = [(step.time_ns // 1_000_000, packet.hex()) for step in steps for packet in step.sent]
    expected = [(ms, packet.hex()) for ms, packet in read_capture(folder / "out.pcap")]
    assert sent == expected, case["sentence"]
    assert carried >= CARRIED.get(folder.name, 0)


def test_the_cases_that_must_be_carried_are_there() -> None:
    assert set(CARRIED) <= {folder.name for folder in CASES}
