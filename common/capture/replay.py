"""A capture through a pure data path: what would it do with this traffic?

The clock is the capture's: each packet is decided about at its own time, and
between packets the timers run every 100 ms, as in the daemons. A long silence
is cut short: after a minute of it the clock jumps to the next packet, whose
timers still find everything that is due.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol

from common.capture.pcap import Captured
from common.verdict import DropReason, Verdict
from common.wire import Malformed
from common.wire.family import look
from common.wire.packet import TCP
from common.wire.tcp import Segment

TICK_MS = 100
_TICKS_IN_A_GAP = 600
_NS_PER_MS = 1_000_000
_FLAGS = "FSRPAUEC"  # from the lowest bit: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR


class Datapath(Protocol):
    """What a data path is, as far as a replay needs it."""

    def on_packet(self, octets: bytes, now_ms: int) -> Verdict: ...
    def on_tick(self, now_ms: int) -> list[bytes]: ...


class Step(NamedTuple):
    """What one packet of the capture, or a timer, gave rise to.

    number:  the packet's place in the capture, from 1; 0 for a timer.
    time_ns: unix time. packet, verdict: None for a timer.
    sent:    whole IPv4 packets, in order.
    """

    number: int
    time_ns: int
    packet: bytes | None
    verdict: Verdict | None
    sent: tuple[bytes, ...]


def segment_in(octets: bytes) -> Segment | None:
    """The TCP segment that an IP packet carries, if it is one whose headers hold."""
    packet = look(octets)
    try:
        return Segment(packet) if packet.protocol == TCP else None
    except Malformed:
        return None


def replay(
    datapath: Datapath, packets: Iterable[Captured], *, run_on_ms: int = 0
) -> Iterator[Step]:
    """Feed a capture to a data path, in the capture's time; frames without IPv4 are passed over.

    run_on_ms: how long the timers run on after the last packet.
    Returns: a step for every packet, and for every timer that sent something.
    """
    now_ms = tick_ms = 0
    for number, captured in enumerate(packets, 1):
        time_ns, packet = captured.time_ns, captured.packet
        if packet is None:
            continue
        time_ms = time_ns // _NS_PER_MS
        if not now_ms:
            now_ms, tick_ms = time_ms, time_ms + TICK_MS
        now_ms = max(now_ms, time_ms)  # captures of several interfaces may step back a little
        yield from _timers(datapath, tick_ms, now_ms)
        tick_ms = max(tick_ms, now_ms - (now_ms - tick_ms) % TICK_MS + TICK_MS)
        verdict = datapath.on_packet(packet, now_ms)
        yield Step(number, time_ns, packet, verdict, verdict.packets)
    yield from _timers(datapath, tick_ms, now_ms + run_on_ms)


def _timers(datapath: Datapath, tick_ms: int, until_ms: int) -> Iterator[Step]:
    """Run the timers from `tick_ms` on; in a long silence the first minute's, and the last."""
    due = range(tick_ms, until_ms + 1, TICK_MS)
    last = due[-1:] if len(due) > _TICKS_IN_A_GAP else ()
    for at_ms in (*due[:_TICKS_IN_A_GAP], *last):
        sent = tuple(datapath.on_tick(at_ms))
        if sent:
            yield Step(0, at_ms * _NS_PER_MS, None, None, sent)


class Summary:
    """Counts of what became of a capture's packets."""

    def __init__(self) -> None:
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.unread: Counter[str] = Counter()
        self.frames = self.not_ipv4 = self.cut = self.sent = self.sent_by_timers = 0

    def watch(self, packets: Iterable[Captured]) -> Iterator[Captured]:
        """Count frames on their way into a replay."""
        for captured in packets:
            self.frames += 1
            if captured.unread:
                self.unread[captured.unread] += 1
            else:
                self.not_ipv4 += captured.packet is None
            self.cut += captured.cut_len > 0 and captured.packet is not None
            yield captured

    def add(self, step: Step) -> None:
        """Count a step."""
        self.sent += len(step.sent)
        if step.verdict is None:
            self.sent_by_timers += len(step.sent)
        else:
            self.verdicts[step.verdict.action.value, step.verdict.reason.value] += 1

    def rows(self) -> list[tuple[str, str, int]]:
        """(verdict, reason, packets), the most frequent first."""
        return [(*names, count) for names, count in self.verdicts.most_common()]

    def notes(self) -> list[str]:
        """What else an operator should know."""
        notes = []
        if self.sent_by_timers:
            notes.append(f"{self.sent_by_timers} of the packets written were sent when a timer "
                         "ran out")
        notes += [f"{count} frames have a link type that is not supported: {link}"
                  for link, count in self.unread.most_common()]
        if self.not_ipv4:
            notes.append(f"{self.not_ipv4} frames do not contain IPv4 and were skipped")
        if self.cut:
            notes.append(f"{self.cut} packets were cut short by the capture; take it with a "
                         "larger snap length (tcpdump -s 0)")
        return notes

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "verdicts": [
                {"verdict": verdict, "reason": reason, "packets": count}
                for verdict, reason, count in self.rows()
            ],
            "frames": self.frames, "not_ipv4": self.not_ipv4,
            "unread_link_types": dict(self.unread), "cut_short": self.cut,
            "sent": self.sent, "sent_by_timers": self.sent_by_timers,
        }


LINE = ("{number:>6} {seconds:>12.6f}  {flow:<45} {flags:<5} {length:>5}  "
        "{verdict:<5} {reason:<18} {sent:>4}")
LINE_HEAD = (f"{'packet':>6} {'seconds':>12}  {'flow':<45} {'flags':<5} {'len':>5}  "
             f"{'says':<5} {'reason':<18} sent")


def describe(step: Step, seconds: float) -> dict[str, Any]:
    """A step as the fields of `LINE`, or for programs.

    seconds: since the first step. length: octets of payload, without TCP of the IP payload.
    """
    flow, flags, length = ends(step.packet) if step.packet is not None else ("-", "-", 0)
    verdict, reason = ("timer", "-") if step.verdict is None else (
        step.verdict.action.value, step.verdict.reason.value)
    return {
        "number": step.number, "seconds": seconds, "flow": flow, "flags": flags,
        "length": length, "verdict": verdict, "reason": reason, "sent": len(step.sent),
    }


def ends(octets: bytes) -> tuple[str, str, int]:
    """(flow, flags, octets of payload) of a packet, as far as it can be read."""
    packet = look(octets)
    source, destination = _dotted(packet.src), _dotted(packet.dst)
    try:
        if packet.protocol != TCP:
            raise Malformed(DropReason.MALFORMED_TCP)
        segment = Segment(packet)
    except Malformed:
        return (f"{source} > {destination}", "-",
                max(len(octets) - packet.family.header_len, 0))
    sport, dport = (int.from_bytes(port, "big") for port in (segment.sport, segment.dport))
    flags = "".join(name for bit, name in enumerate(_FLAGS) if segment.flags >> bit & 1)
    return f"{source}:{sport} > {destination}:{dport}", flags or "none", segment.payload_len


def _dotted(octets: bytes) -> str:
    return str(ip_address(octets)) if octets else "?"
