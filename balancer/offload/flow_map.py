"""The flow table that the balancer's program shares with the daemon.

An array of buckets (balancer/offload/bpf/flows.h says how flows stand in it). The daemon enters and
removes flows by small programs, so that either side writes by the same rules; it reads the array
itself, as shared memory, which takes no system call.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from mmap import mmap
from typing import NamedTuple

from common.bpf.btf import Row
from common.bpf.maps import ARRAY, Map
from common.bpf.objects import Object, types_of
from common.engine import clock

ENTERED, TABLE_FULL, CROWDED = range(3)  # what becomes of an attempt to enter a flow
IDLE = 6  # a rank that no state has
_LEAST_BUCKETS = 4096
_CHUNK_FLOWS = 4096
_COUNT_LEN = 8  # of a backend's flows
_U64 = (1 << 64) - 1
_OCCUPIED = re.compile(rb"[^\0]")
# In a state: the portable engine waits for the flow's packets; they have no timestamps; a SYN
# without timestamps has come since; the first payload has come again, unanswered (of no meaning to
# releases that do not know it, so that STATE_BITS need not tell).
GOES_UP, BARE, SYN_SEEN, REPEATED = 0x80, 0x40, 0x20, 0x10
STATE_MASK = 0x07
STATE_BITS = "open doubted half-closed reset new taken-over, 20 SYN seen, 40 bare, 80 goes up"
CREATED_BITS = 40  # of created_ms
_CREATED_MASK = (1 << CREATED_BITS) - 1


class Entry(NamedTuple):
    """A flow as it stands in the table; names and units as in BackendFlow.

    key: the five-tuple. service: its number. backend: an id. Times: since the boot.
    number: of a flow with timestamps its ts_shift, else its noted_seq.
    """

    key: bytes
    client_isn: int
    number: int
    created_ms: int
    seen_ms: int
    service: int
    backend: int
    state: int
    goes_up: bool = False
    has_timestamps: bool = True
    syn_seen: bool = False
    is_repeated: bool = False

    def pack(self) -> bytes:
        """As balancer/offload/bpf/flows.h:flow."""
        return _row().pack(
            self.key, self.client_isn, self.number, self.created_ms & 0xFFFFFFFF,
            self.seen_ms & 0xFFFFFFFF, self.service, self.backend,
            self.state | GOES_UP * self.goes_up | BARE * (not self.has_timestamps)
            | SYN_SEEN * self.syn_seen | REPEATED * self.is_repeated, self.created_ms >> 32 & 0xFF,
        )

    @classmethod
    def unpack(cls, octets: bytes, now_ms: int) -> "Entry":
        """now_ms: to which the times in the table, which have few bits, are near."""
        key, isn, number, created, seen, service, backend, state, high = _row().unpack(
            octets)
        age_ms = now_ms - (high << 32 | created) & _CREATED_MASK
        idle_ms = (now_ms - seen & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
        return cls(key, isn, number, now_ms - age_ms, now_ms - idle_ms, service, backend,
                   state & STATE_MASK, bool(state & GOES_UP), not state & BARE,
                   bool(state & SYN_SEEN), bool(state & REPEATED))


@cache
def _row() -> Row:
    """An entry in the table."""
    return types_of("balancer", "balancer").layout("flow").row(
        "ends", "client_isn", "number", "created_ms", "seen_ms",
        "tag.service", "tag.backend", "tag.state", "tag.created_high")


@cache
def _ends() -> Row:
    """Whose it is."""
    return types_of("balancer", "balancer").layout("flow").row("ends")


def key_of(octets: bytes) -> bytes:
    """The five-tuple of an Entry's octets."""
    key: bytes = _ends().unpack(octets)[0]
    return key


class FlowMap:
    """The table of a loaded program. What is entered and found: an Entry's octets."""

    @staticmethod
    def size(program_file: Object, max_flows: int) -> None:
        """Before load: make so much room that hardly any flow finds its two buckets full."""
        buckets = max(_LEAST_BUCKETS, 1 << (2 * max_flows - 1).bit_length())
        program_file.set_max_entries("flows", buckets + _beyond(program_file))
        program_file.set_variable("bucket_mask", buckets - 1)
        program_file.set_variable("max_flows", max_flows)

    def __init__(self, program_file: Object) -> None:
        """After load. Raises: BpfError."""
        btf = program_file.btf
        self._flow, self._bucket, self._table, self._request = (
            btf.layout(name) for name in ("flow", "bucket", "table", "flow_request"))
        self._fields = self._request.row("flow", "now_ms", "least")
        self._numbers = btf.layout("five_tuple").row(
            "saddr", "daddr", "sport", "dport", as_numbers=True).unpack
        table = program_file.map("flows")
        self._memory = table.map_memory()
        self._end = (table.shape.max_entries - _beyond(program_file)) * self._bucket.size
        self._mask = self._end // self._bucket.size - 1
        self._flow_len, self._bucket_len = self._flow.size, self._bucket.size
        self._backend_off = self._flow.offset("tag.backend")
        table.close()
        self._write, self._remove = map(program_file.program, ("write_flow", "remove_flow"))
        seed_off = self._end + self._table.offset("seed")
        seed = memoryview(self._memory)[seed_off:seed_off + 8].cast("Q")
        if not seed[0]:
            seed[0] = int.from_bytes(os.urandom(8))
        self.seed = seed[0]
        seed.release()
        self._count_off = self._end + self._table.offset("count")

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()

    def __len__(self) -> int:
        return int.from_bytes(self._memory[self._count_off:self._count_off + 8], sys.byteorder)

    def count(self, place: int) -> int:
        """How many flows the backend at a place in arrays has."""
        off = self._end + self._bucket_len + place * _COUNT_LEN
        return int.from_bytes(self._memory[off:off + _COUNT_LEN], sys.byteorder)

    def lookup(self, key: bytes) -> bytes | None:
        """The flow of a five-tuple. Twin: balancer/offload/bpf/flows.h:look_up"""
        number, flow_len, backend_off = self._hash(key), self._flow_len, self._backend_off
        for bucket in (number & self._mask, number >> 32 & self._mask):
            first = bucket * self._bucket_len
            for start in range(first, first + self._bucket_len, flow_len):
                flow = self._memory[start:start + flow_len]
                while flow.startswith(key) and flow[backend_off]:
                    again = self._memory[start:start + flow_len]
                    if again == flow:
                        return flow
                    flow = again  # it was being written
        return None

    def enter(self, flow: bytes, now_ms: int, least: int = IDLE) -> int:
        """Enter a flow, or change it. Returns: ENTERED, or what is in the way.

        least: where all its places are taken, the lowest state of a flow that goes for it; one that
               has been idle for too long always does.
        """
        return self._write.call(self._asked(flow, now_ms, least))

    def delete(self, key: bytes) -> bool:
        """Remove a flow. Returns: whether it was there."""
        return bool(self._remove.call(self._asked(_ends().pack(key))))

    def chunks(self) -> Iterator[list[bytes]]:
        """All flows, part by part of the table; of a part there may be none."""
        return self._chunks(self._memory, self._end)

    def row(self, *fields: str) -> Row:
        """Some fields of a flow, by C's names."""
        return self._flow.row(*fields)

    def forget_service(self, number: int) -> None:
        """Remove all flows of the service of that number."""
        off = self._flow.offset("tag.service")
        for chunk in self.chunks():
            for flow in chunk:
                if flow[off] == number:
                    self.delete(key_of(flow))

    def _hash(self, key: bytes) -> int:
        """Twin: balancer/offload/bpf/flows.h:hash_of"""
        saddr, daddr, sport, dport = self._numbers(key)
        number = (saddr << 32 | sport << 16 | dport) ^ self.seed
        number = number * 0x9E3779B97F4A7C15 & _U64
        number ^= number >> 32 ^ daddr
        number = number * 0xBF58476D1CE4E5B9 & _U64
        number ^= number >> 29
        number = number * 0x94D049BB133111EB & _U64
        return number ^ number >> 31

    def take_over(self, old: Map, replace: bool) -> None:
        """Enter the flows of a table of another size. replace: also those that are here."""
        if old.shape[:3] != (ARRAY, 4, self._bucket.size):
            return
        memory, now_ms = old.map_memory(), clock.now_ms()
        # whatever that release had beyond its buckets: they are a power of two, and most of it
        buckets = 1 << (old.shape.max_entries - 1).bit_length() - 1
        for chunk in self._chunks(memory, buckets * self._bucket.size):
            for flow in chunk:
                if replace or self.lookup(key_of(flow)) is None:
                    self.enter(flow, now_ms)
        memory.close()

    def _asked(
        self, flow: bytes, now_ms: int = 0, least: int = IDLE
    ) -> ctypes.Array[ctypes.c_char]:
        """The argument of the small programs."""
        return ctypes.create_string_buffer(self._fields.pack(flow, now_ms, least),
                                           self._request.size)

    def _chunks(self, memory: mmap, end: int) -> Iterator[list[bytes]]:
        flow_len, backend_off = self._flow.size, self._flow.offset("tag.backend")
        chunk_len = _CHUNK_FLOWS * flow_len
        for start in range(0, end, chunk_len):
            backends = memory[start + backend_off:min(end, start + chunk_len):flow_len]
            found = []
            for match in _OCCUPIED.finditer(backends):
                place = start + match.start() * flow_len
                found.append(memory[place:place + flow_len])
            yield found


def _beyond(program_file: Object) -> int:
    """How much room there is beyond the buckets, in buckets: the table's own, and the counts."""
    in_bucket = program_file.btf.layout("bucket").size // _COUNT_LEN
    return 1 + program_file.shape("backends").max_entries // in_bucket
