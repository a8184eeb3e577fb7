"""Decisions in an operator's words: a line, JSON, or a sentence; with the key of their flow.

Only the first payload has the key. Later packets of a flow have it from there, if that was seen.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import Any, NamedTuple

from balancer.keys.request import NEED_MORE, KeySpec, extract
from balancer.tools.explain import readable
from balancer.trace.messages import Decision, ServiceWords
from common.capture.replay import ends, segment_in
from common.verdict import DropReason, Event
from common.wire.family import stated_len
from common.wire.tcp import SYN

MOST_FLOWS = 16384  # whose keys are remembered
_MOST_WAITING = 32  # packets of a flow whose key is not known yet
_KEY_WIDTH = 60
_LEAST_LEN = 20  # octets of a packet that says how long it is
_FROM_SOURCE = ("source", "source+port")
LINE = "{time:<12}  {flow:<43}  {flags:<5} {length:>5}  {reason:<19} {backend:<19} {key}"
HEAD = LINE.format(time="time", flow="client → vip", flags="flags", length="len",
                   reason="reason", backend="backend", key="key")


class Shown(NamedTuple):
    """A decision with all that there is to say of it.

    time_ns: unix time. packet: as it came, or the first of it. whole_len: what it had.
    flags, key: `-` where there are none. address: of the backend. service: its name.
    """

    time_ns: int
    decision: Decision
    whole_len: int
    client: str
    vip: str
    flags: str
    length: int
    service: str
    key: str
    address: str

    def line(self) -> str:
        """For people."""
        seconds, rest_ns = divmod(self.time_ns, 10**9)
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        key = self.key if len(self.key) <= _KEY_WIDTH else f"{self.key[:_KEY_WIDTH - 1]}…"
        return LINE.format(
            time=f"{clock}.{rest_ns // 1_000_000:03}", flow=f"{self.client} → {self.vip}",
            flags=self.flags, length=self.length, reason=self.decision.reason.value,
            backend=self._backend() or "-", key=key or "-").rstrip()

    def as_json(self) -> dict[str, Any]:
        """For programs; null where there is nothing to say."""
        return {
            "time": self.time_ns / 10**9, "client": self.client, "vip": self.vip,
            "service": self.service or None, "flags": self.flags, "length": self.length,
            "reason": self.decision.reason.value, "dropped": self._is_dropped,
            "key": self.key or None, "backend": self.decision.backend or None,
            "backend_address": self.address or None,
        }

    def sentence(self) -> str:
        """For a comment in a capture."""
        reason = self.decision.reason.value
        words = f"dropped: {reason}" if self._is_dropped else reason
        if self.decision.backend:
            words += f", to backend {self._backend()}"
        if self.key:
            words += f", key {self.key}"
        return words

    @property
    def _is_dropped(self) -> bool:
        return isinstance(self.decision.reason, DropReason)

    def _backend(self) -> str:
        if not self.decision.backend:
            return ""
        return f"{self.decision.backend} ({self.address or '?'})"


class Service:
    """A service of the balancer that is looked at."""

    def __init__(self, words: ServiceWords) -> None:
        self.name = words.name
        self.backends = {int(number): address for number, address in words.backends.items()}
        self._specs = (KeySpec.parse(words.key), KeySpec.parse(words.fallback))

    def key(self, payload: bytes, source: bytes, sport: int) -> str:
        """By what a backend was chosen; with `…` where there is more of it than was seen."""
        for spec in (*self._specs, KeySpec("source")):
            found = extract(spec, payload, source, sport, False)
            more = ""
            if found is NEED_MORE:
                found, more = extract(spec, payload, source, sport, True), "…"
            if isinstance(found, bytes):
                return readable(spec, found) + more
        return ""


class Decisions:
    """Makes decisions fit to be shown.

    key: a pattern as a shell's, for flows of these keys alone. What comes before a flow's key is
    known waits for it.
    """

    def __init__(
        self, services: Iterable[ServiceWords], key: str | None, offset_ns: int
    ) -> None:
        """offset_ns: unix time − the time in decisions."""
        self.learn(services)
        self._pattern = key
        self._offset_ns = offset_ns
        self._keys: OrderedDict[bytes, str] = OrderedDict()
        self._waiting: OrderedDict[bytes, list[Shown]] = OrderedDict()

    def learn(self, services: Iterable[ServiceWords]) -> None:
        """The balancer has these now."""
        self._services = {(each.vip, each.port): Service(each) for each in services}

    def take(self, decision: Decision) -> list[Shown]:
        """What is to be shown now."""
        packet = decision.packet
        whole_len = len(packet)
        if whole_len >= _LEAST_LEN:
            whole_len = max(stated_len(packet), whole_len)
        whole = packet.ljust(whole_len, b"\0")  # for those who look at lengths
        flow, flags, length = ends(whole)
        client, _, vip = flow.partition(" > ")
        segment = segment_in(whole)
        service = None
        key = ""
        flow_key = b""
        if segment is not None:
            port = int.from_bytes(segment.dport)
            service = self._services.get((str(ip_address(segment.packet.dst)), port))
            flow_key = segment.five_tuple
            if segment.flags & SYN:
                self._keys.pop(flow_key, None)
            elif decision.reason is Event.HANDOFF and service:
                payload = decision.payload or packet[stated_len(packet) - segment.payload_len:]
                key = service.key(payload, segment.packet.src, int.from_bytes(segment.sport))
                _put(self._keys, flow_key, key)
            key = key or self._keys.get(flow_key, "")
        shown = Shown(
            decision.time_ns + self._offset_ns, decision, whole_len, client, vip, flags, length,
            service.name if service else "", key,
            service.backends.get(decision.backend, "") if service else "")
        return [shown] if self._pattern is None else self._matching(shown, flow_key)

    def _matching(self, shown: Shown, flow_key: bytes) -> list[Shown]:
        if shown.key:
            before = self._waiting.pop(flow_key, [])
            assert self._pattern is not None
            return [*before, shown] if fnmatchcase(shown.key, self._pattern) else []
        if flow_key and not shown.decision.backend:  # else it has had its first payload
            before = self._waiting.pop(flow_key, [])
            _put(self._waiting, flow_key, [*before, shown][-_MOST_WAITING:])
        return []


def _put(memory: OrderedDict[bytes, Any], flow_key: bytes, value: Any) -> None:
    memory[flow_key] = value
    memory.move_to_end(flow_key)
    if len(memory) > MOST_FLOWS:
        memory.popitem(last=False)
