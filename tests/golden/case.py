"""A golden case: told as packets in and verdicts out, kept as a folder of two captures and a text.

A case is a function of a `Case`. Its name, with dashes, names the folder; its
docstring is the sentence that the case proves. It tells the story in order:

    case.sends("syn_answered", client.syn(...), client.syn_ack(...))
    case.wait(1000)
    case.drops("unknown_flow", client.segment("A"))

`in.pcap` has the packets as they arrive; `out.pcap` all that must be sent, each
at the time of the packet or timer that causes it; `case.toml` the program's
configuration, the secrets, and a verdict for each packet of `in.pcap`:
the action, its reason, and how many packets it sends.

Times are whole milliseconds from START_MS on. Timers run every 100 ms after
the first packet.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.packet import Packet
from scapy.utils import RawPcapReader, RawPcapWriter

START_MS = 1_700_000_010_000  # ten seconds into an epoch of the cookie
SECRET = bytes(range(16))
LINKTYPE_RAW = 101
TICK_MS = 100

Octets = Packet | bytes
Timed = tuple[int, bytes]  # unix time in ms, IPv4 packet


@dataclass
class Case:
    """One case as it is told. secrets: current, then previous.

    own_address: the balancer's, on the way to its backends; not known where there is none.
    """

    program: str
    name: str
    sentence: str
    config: dict[str, Any]
    secrets: tuple[bytes, ...] = (SECRET,)
    foreign_servers: tuple[str, ...] = ()
    own_address: str = ""
    now_ms: int = START_MS
    received: list[Timed] = field(default_factory=list)
    sent: list[Timed] = field(default_factory=list)
    verdicts: list[tuple[str, str]] = field(default_factory=list)

    def sends(self, reason: str, packet: Octets, *expected: Octets) -> None:
        """`packet` arrives now, and `expected` are sent."""
        self._receive(f"send {reason} {len(expected)}", packet)
        self.sent += [(self.now_ms, bytes(made)) for made in expected]

    def drops(self, reason: str, *packets: Octets) -> None:
        """Each of `packets` arrives now and is dropped."""
        for packet in packets:
            self._receive(f"drop {reason}", packet)

    def holds(self, *packets: Octets) -> None:
        """Each of `packets` arrives now and is kept."""
        for packet in packets:
            self._receive("hold held", packet)

    def holds_and_sends(self, packet: Octets, *expected: Octets) -> None:
        """`packet` arrives now and is kept; others, for which there is no room, are sent."""
        self.holds(packet)
        self.sent += [(self.now_ms, bytes(made)) for made in expected]

    def passes(self, *packets: Octets) -> None:
        """Each of `packets` arrives now and is left to the host."""
        for packet in packets:
            self._receive("pass not_ours", packet)

    def wait(self, ms: int) -> None:
        """Time passes."""
        self.now_ms += ms

    def timers_send(self, after_ms: int, *expected: Octets) -> None:
        """Time passes, and then a timer sends `expected`."""
        self.wait(after_ms)
        assert (self.now_ms - self.received[0][0]) % TICK_MS == 0, "no timer runs at this time"
        self.sent += [(self.now_ms, bytes(made)) for made in expected]

    def _receive(self, verdict: str, packet: Octets) -> None:
        self.received.append((self.now_ms, bytes(packet)))
        self.verdicts.append((verdict, _describe(packet)))

    def write(self, root: Path) -> None:
        """Write the case's folder under `root`."""
        folder = root / self.program / self.name
        folder.mkdir(parents=True, exist_ok=True)
        write_capture(folder / "in.pcap", self.received)
        write_capture(folder / "out.pcap", self.sent)
        (folder / "case.toml").write_text("\n".join(self._toml()) + "\n", encoding="utf-8")

    def _toml(self) -> Iterator[str]:
        yield f"sentence = {_value(self.sentence)}"
        yield f'program = "{self.program}"'
        yield f"secrets = {_value([secret.hex() for secret in self.secrets])}"
        if self.foreign_servers:
            yield f"foreign_servers = {_value(list(self.foreign_servers))}"
        if self.own_address:
            yield f"own_address = {_value(self.own_address)}"
        # timers must have run to the end of the story, and some more
        yield f"run_on_ms = {self.now_ms - self.received[-1][0] + 5 * TICK_MS}"
        yield "verdicts = ["
        for (time_ms, _), (verdict, note) in zip(self.received, self.verdicts, strict=True):
            yield f'    "{verdict}",  # {(time_ms - START_MS) / 1000:+.3f} {note}'
        yield "]"
        yield from _table("config", self.config)


def write_capture(path: Path, packets: list[Timed]) -> None:
    """A pcap of raw IP, the same octets on every host."""
    with RawPcapWriter(str(path), linktype=LINKTYPE_RAW, endianness="<") as file:
        file.write_header(None)
        for time_ms, packet in packets:
            file.write_packet(packet, sec=time_ms // 1000, usec=time_ms % 1000 * 1000)


def read_capture(path: Path) -> list[Timed]:
    """What `write_capture` wrote, octet for octet, whether it is IPv4 or not."""
    with RawPcapReader(str(path)) as file:
        return [(meta.sec * 1000 + meta.usec // 1000, octets) for octets, meta in file]


Story = Callable[[Case], None]


class Book:
    """The cases of one program. configure: makes its TOML from a case's own arguments."""

    def __init__(self, program: str, configure: Callable[..., dict[str, Any]]) -> None:
        self.program = program
        self._configure = configure
        self._stories: dict[str, Callable[[], Case]] = {}

    def case(
        self, *, secrets: tuple[bytes, ...] = (SECRET,), foreign_servers: tuple[str, ...] = (),
        own_address: str = "", **config: Any,
    ) -> Callable[[Story], Story]:
        """Enter a story; the arguments are those of `configure`."""
        def enter(story: Story) -> Story:
            name = story.__name__.replace("_", "-")
            assert name not in self._stories, name
            sentence = " ".join((story.__doc__ or "").split())

            def tell() -> Case:
                case = Case(self.program, name, sentence, self._configure(**config), secrets,
                            foreign_servers, own_address)
                story(case)
                return case

            self._stories[name] = tell
            return story
        return enter

    def tell(self) -> Iterator[Case]:
        """Every case, told."""
        for tell in self._stories.values():
            yield tell()


def _describe(packet: Octets) -> str:
    """A packet in a few words, for who reads case.toml."""
    if not isinstance(packet, Packet) or IP not in packet:
        return f"{len(bytes(packet))} octets"
    ip = packet[IP]
    if TCP not in packet or ip.proto != 6 or ip.frag:
        return f"{ip.src} > {ip.dst} {packet.summary().split(' / ')[1].split()[0]}"
    tcp = packet[TCP]
    return f"{ip.src}:{tcp.sport} > {ip.dst}:{tcp.dport} {tcp.flags} len {len(tcp.payload)}"


def _value(value: Any) -> str:
    """A TOML value; JSON's text, number, boolean and list are TOML's as well."""
    return json.dumps(value, ensure_ascii=False)


def _table(name: str, table: dict[str, Any], brackets: str = "[{}]") -> Iterator[str]:
    """A TOML table with its sub-tables after its values."""
    yield ""
    yield brackets.format(name)
    nested = {}
    for key, value in table.items():
        if isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict)):
            nested[key] = value
        else:
            yield f"{key} = {_value(value)}"
    for key, value in nested.items():
        for entry in value if isinstance(value, list) else [value]:
            form = "[[{}]]" if isinstance(value, list) else "[{}]"
            yield from _table(f"{name}.{key}", entry, form)
