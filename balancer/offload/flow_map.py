"""The flow table that the balancer's program shares with the daemon.

An array of buckets (balancer/offload/bpf/flows.h says how flows stand in it). The daemon looks a
flow up, enters and removes it by small programs, so that either side writes by the same rules; only
walks read the array itself, as shared memory.
"""

import ctypes
import os
import re
import struct
import time
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

from common.bpf.maps import ARRAY, Map
from common.bpf.objects import Object

ENTERED, TABLE_FULL, CROWDED = range(3)  # what becomes of an attempt to enter a flow
IDLE = 3  # a rank that no state has
KEY = slice(0, 12)  # of an entry's octets
_LEAST_BUCKETS = 4096
_BUCKET_LEN, _FLOW_LEN, _BACKEND_OFF = 64, 32, 29
_CHUNK_LEN = 4096 * _FLOW_LEN
_FLOW = struct.Struct("=12sIIIIBBBB")
_REQUEST = struct.Struct("=32sQI4x")
_SEED, _COUNT = struct.Struct("=Q"), struct.Struct("=8xQ")  # of the last bucket
_OCCUPIED = re.compile(rb"[^\0]")
_GOES_UP = 0x80
_CREATED_MASK = (1 << 40) - 1


class Entry(NamedTuple):
    """A flow as it stands in the table; names and units as in BackendFlow, times in unix ms.

    key: the five-tuple. service: its number. backend: an id.
    """

    key: bytes
    client_isn: int
    ts_shift: int
    created_ms: int
    seen_ms: int
    service: int
    backend: int
    state: int
    goes_up: bool = False

    def pack(self) -> bytes:
        """As balancer/offload/bpf/flows.h:flow."""
        return _FLOW.pack(
            self.key, self.client_isn, self.ts_shift, self.created_ms & 0xFFFFFFFF,
            self.seen_ms & 0xFFFFFFFF, self.service, self.backend,
            self.state | _GOES_UP * self.goes_up, self.created_ms >> 32 & 0xFF,
        )

    @classmethod
    def unpack(cls, octets: bytes, now_ms: int) -> "Entry":
        """now_ms: to which the times in the table, which have few bits, are near."""
        key, isn, ts_shift, created, seen, service, backend, state, high = _FLOW.unpack(octets)
        age_ms = now_ms - (high << 32 | created) & _CREATED_MASK
        idle_ms = (now_ms - seen & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)
        return cls(key, isn, ts_shift, now_ms - age_ms, now_ms - idle_ms, service, backend,
                   state & ~_GOES_UP, bool(state & _GOES_UP))


class FlowMap:
    """The table of a loaded program. What is entered and found: an Entry's octets."""

    @staticmethod
    def size(program_file: Object, max_flows: int) -> None:
        """Before load: make so much room that hardly any flow finds its two buckets full."""
        buckets = max(_LEAST_BUCKETS, 1 << (2 * max_flows - 1).bit_length())
        program_file.set_max_entries("flows", buckets + 1)
        program_file.set_variable("bucket_mask", buckets - 1)
        program_file.set_variable("max_flows", max_flows)

    def __init__(self, program_file: Object) -> None:
        """After load. Raises: BpfError."""
        table = program_file.map("flows")
        self._memory = table.map_memory()
        self._end = (table.shape.max_entries - 1) * _BUCKET_LEN
        table.close()
        self._read, self._write, self._remove = (
            program_file.program(name) for name in ("read_flow", "write_flow", "remove_flow"))
        self.seed: int = _SEED.unpack_from(self._memory, self._end)[0]
        if not self.seed:
            self.seed = int.from_bytes(os.urandom(8))
            _SEED.pack_into(self._memory, self._end, self.seed)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()

    def __len__(self) -> int:
        count: int = _COUNT.unpack_from(self._memory, self._end)[0]
        return count

    def lookup(self, key: bytes) -> bytes | None:
        """The flow of a five-tuple."""
        request = _request(key)
        return request.raw[:_FLOW_LEN] if self._read.call(request) else None

    def enter(self, flow: bytes, now_ms: int, least: int = IDLE) -> int:
        """Enter a flow, or change it. Returns: ENTERED, or what is in the way.

        least: where all its places are taken, the lowest state of a flow that goes for it; one that
               has been idle for too long always does.
        """
        return self._write.call(_request(flow, now_ms, least))

    def delete(self, key: bytes) -> bool:
        """Remove a flow. Returns: whether it was there."""
        return bool(self._remove.call(_request(key)))

    def chunks(self) -> Iterator[list[bytes]]:
        """All flows, part by part of the table; of a part there may be none."""
        return _chunks(self._memory, self._end)

    def take_over(self, old: Map, replace: bool) -> None:
        """Enter the flows of a table of another size. replace: also those that are here."""
        if old.shape[:3] != (ARRAY, 4, _BUCKET_LEN):
            return
        memory, now_ms = old.map_memory(), time.time_ns() // 1_000_000
        for chunk in _chunks(memory, len(memory) - _BUCKET_LEN):
            for flow in chunk:
                if replace or self.lookup(flow[KEY]) is None:
                    self.enter(flow, now_ms)
        memory.close()


def _request(flow: bytes, now_ms: int = 0, least: int = IDLE) -> ctypes.Array[ctypes.c_char]:
    """As balancer/offload/bpf/flows.h:flow_request. flow: an entry, or a key alone."""
    return ctypes.create_string_buffer(_REQUEST.pack(flow, now_ms, least), _REQUEST.size)


def _chunks(memory: mmap, end: int) -> Iterator[list[bytes]]:
    for start in range(0, end, _CHUNK_LEN):
        backends = memory[start + _BACKEND_OFF:min(end, start + _CHUNK_LEN):_FLOW_LEN]
        found = []
        for match in _OCCUPIED.finditer(backends):
            place = start + match.start() * _FLOW_LEN
            found.append(memory[place:place + _FLOW_LEN])
        yield found
