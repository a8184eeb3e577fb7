"""The data path over a capture: what would it do with my traffic?

Offline and without root. The clock is the capture's, so timeouts and cookies
behave as they would have when it was taken.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.engine import TICK_MS, Datapath
from common.verdict import Verdict

LINKTYPE_RAW = 101
_MAX_TICKS = 36_000  # an hour without packets is stepped through; more is jumped over
_ETHERTYPE_IPV4 = 0x0800
_VLAN_ETHERTYPES = (0x8100, 0x88A8)
# link type → (header length, offset of the ethertype)
_LINKS = {1: (14, 12), 113: (16, 14), 276: (20, 0)}


class Packet(NamedTuple):
    """A packet of a capture, from its IP header on. time_us: unix time."""

    time_us: int
    octets: bytes


class Step(NamedTuple):
    """What the data path did. packet: None where a timer sent something.

    time_us: when. number: of the packet in the capture, from 1.
    """

    time_us: int
    number: int
    packet: bytes | None
    verdict: Verdict | None
    sent: tuple[bytes, ...]


def replay(datapath: Datapath, packets: Iterable[Packet], tail_ms: int = 0) -> Iterator[Step]:
    """Feed packets to a data path in the order of the capture, with its timers in between.

    tail_ms: for how long timers run after the last packet.
    """
    next_tick_ms = last_ms = 0
    for number, packet in enumerate(packets, 1):
        now_ms = packet.time_us // 1000
        if not next_tick_ms:
            next_tick_ms = now_ms + TICK_MS
        yield from _ticks(datapath, next_tick_ms, now_ms, number)
        next_tick_ms += max((now_ms - next_tick_ms) // TICK_MS + 1, 0) * TICK_MS
        verdict = datapath.on_packet(packet.octets, now_ms)
        yield Step(packet.time_us, number, packet.octets, verdict, verdict.packets)
        last_ms = now_ms
    if last_ms:
        yield from _ticks(datapath, next_tick_ms, last_ms + tail_ms, number)


def _ticks(datapath: Datapath, first_ms: int, until_ms: int, number: int) -> Iterator[Step]:
    """Run the timers at `first_ms`, a tick later, and so on up to `until_ms`."""
    skipped = max((until_ms - first_ms) // TICK_MS - _MAX_TICKS, 0)
    for tick_ms in range(first_ms + skipped * TICK_MS, until_ms + 1, TICK_MS):
        sent = datapath.on_tick(tick_ms)
        if sent:
            yield Step(tick_ms * 1000, number, None, None, tuple(sent))


def read(path: str) -> Iterator[Packet]:
    """The IPv4 packets of a pcap or pcapng file. Raises: ValueError where it is neither."""
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    try:
        reader = RawPcapReader(path)
    except Scapy_Exception as error:
        raise ValueError(f"{path} is no capture: {error}") from None
    with reader:
        for octets, metadata in reader:
            if isinstance(reader, RawPcapNgReader):
                link, resolution = metadata.linktype, metadata.tsresol
                time_us = ((metadata.tshigh << 32) + metadata.tslow) * 1_000_000 // resolution
            else:
                link = reader.linktype
                time_us = metadata.sec * 1_000_000 + metadata.usec
                if reader.nano:
                    time_us = metadata.sec * 1_000_000 + metadata.usec // 1000
            packet = _ipv4_of(octets, link)
            if packet is not None:
                yield Packet(time_us, packet)


def _ipv4_of(frame: bytes, link: int) -> bytes | None:
    """The IPv4 packet in a frame of that link type, or None."""
    if link in (12, 14, LINKTYPE_RAW, 228):
        return frame if frame[:1] and frame[0] >> 4 == 4 else None
    if link not in _LINKS:
        raise ValueError(f"captures of link type {link} cannot be read")
    header_len, off = _LINKS[link]
    ethertype = int.from_bytes(frame[off:off + 2], "big")
    while ethertype in _VLAN_ETHERTYPES:
        ethertype = int.from_bytes(frame[header_len + 2:header_len + 4], "big")
        header_len += 4
    return frame[header_len:] if ethertype == _ETHERTYPE_IPV4 else None


def write(path: str, packets: Iterable[Packet]) -> None:
    """Write packets as a pcap file of raw IP."""
    from scapy.utils import RawPcapWriter

    with RawPcapWriter(path, linktype=LINKTYPE_RAW, sync=True) as writer:
        writer.write_header(None)
        for packet in packets:
            seconds, microseconds = divmod(packet.time_us, 1_000_000)
            writer.write_packet(packet.octets, sec=seconds, usec=microseconds)


def run(datapath: Datapath, source: str, target: str, verbose: bool) -> tuple[str, dict]:
    """Replay a capture file into another. Returns: a table for people, and the same for programs.

    Raises: ValueError or OSError where a file cannot be used.
    """
    counts: Counter[tuple[str, str]] = Counter()
    sent: list[Packet] = []
    lines = []
    for step in replay(datapath, read(source)):
        sent += [Packet(step.time_us, packet) for packet in step.sent]
        action, reason = ("timer", "sent") if step.verdict is None else (
            step.verdict.action.value, step.verdict.reason.value)
        counts[action, reason] += 1
        if verbose:
            lines.append(_line(step, action, reason))
    write(target, sent)
    lines.append(f"{'verdict':<8} {'reason':<20} {'packets':>8}")
    lines += [
        f"{action:<8} {reason:<20} {count:>8}" for (action, reason), count in counts.most_common()
    ]
    lines.append(f"{sum(counts.values())} looked at, {len(sent)} sent to {target}")
    summary = {
        "verdicts": [
            {"verdict": action, "reason": reason, "packets": count}
            for (action, reason), count in counts.most_common()
        ],
        "sent": len(sent),
    }
    return "\n".join(lines), summary


def _line(step: Step, action: str, reason: str) -> str:
    seconds = f"{step.time_us / 1e6:.6f}"
    if step.packet is None:
        return f"{step.number:>6} {seconds} {'(timer)':<45} {action:<6} {len(step.sent)} sent"
    flow = f"{len(step.packet)} octets"
    if len(step.packet) >= 24:
        source, target = step.packet[12:16], step.packet[16:20]
        sport, dport = (int.from_bytes(step.packet[off:off + 2], "big") for off in (20, 22))
        flow = f"{'.'.join(map(str, source))}:{sport} > {'.'.join(map(str, target))}:{dport}"
    return f"{step.number:>6} {seconds} {flow:<45} {action:<6} {reason}"
