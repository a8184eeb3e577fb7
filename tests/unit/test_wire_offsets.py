"""Packets are read by offset in the wire layer alone; elsewhere an offset comes from a view."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# text that is no packet, and C's structs, whose offsets are BTF's
_OTHERS = ("common/wire", "balancer/keys", "common/bpf", "common/settings")
_NAMES = "packet|octets|quoted|forwarded|captured|segment|five_tuple|ends|key"
_FORBIDDEN = {
    "a slice from the start of a packet": rf"\b(?:{_NAMES})\[(?::?\s*\d|[\w.]*_OFF\b)",
    "a field at a fixed place":
        rf"pack_(?:from|into)\((?:packet\)|(?:{_NAMES}), (?:\d|[\w.]*_OFF\b))",
    "an offset that begins nowhere": r"(?<!\+ )\b(?:tcp|udp|ipv4|icmp|options)\.[A-Z_]+_OFF\b",
}


def faults_of(line: str) -> list[str]:
    return [fault for fault, pattern in _FORBIDDEN.items() if re.search(pattern, line)]


@pytest.mark.parametrize("line", [
    "source = packet[12:16]", "packet[9]", "key[:4]", "segment.packet[ipv4.DST_OFF:]",
    "_U32.unpack_from(packet, tcp.SEQ_OFF)[0]", "_U16.pack_into(octets, 36, 0)",
    "_START.unpack_from(packet)", "options.parse(octets, tcp.OPTIONS_OFF, end)",
])
def test_an_offset_of_ones_own_is_found(line: str) -> None:
    assert faults_of(line)


@pytest.mark.parametrize("line", [
    "octets[off:off + tcp.DPORT_OFF]", "_U32.pack_into(octets, off + tcp.ACK_OFF, ack)",
    "_U32.unpack_from(segment.octets, segment.ts_off + 4)", "lines[0]", "octets[quote.off:]",
])
def test_an_offset_from_a_view_is_none(line: str) -> None:
    assert not faults_of(line)


def test_packets_are_read_by_offset_in_the_wire_layer_alone() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {', '.join(faults)}: {line.strip()}"
        for program in ("balancer", "packetbridge", "common")
        for path in sorted((ROOT / program).rglob("*.py"))
        if not str(path.relative_to(ROOT)).startswith(_OTHERS)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if (faults := faults_of(line))
    ]

    assert found == []
