"""eBPF maps: entries by key, singly and in batches; values per CPU; ring buffers."""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from common.bpf.btf import Layout
from common.bpf.libbpf import (
    SAMPLE,
    BatchOptions,
    BpfError,
    check,
    libbpf,
    possible_cpus,
)

# enum bpf_map_type, those that are used.
HASH, ARRAY, PROG_ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH = (
    1, 2, 3, 5, 6, 9, 10)
LPM_TRIE, ARRAY_OF_MAPS, HASH_OF_MAPS, DEVMAP, DEVMAP_HASH, RINGBUF = 11, 12, 13, 14, 25, 27
_PER_CPU = {PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, 21}
ANY, NOEXIST, EXIST = 0, 1, 2
_NO_BATCH = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}

class MapInfo(ctypes.Structure):
    """struct bpf_map_info, its first fields."""

    _fields_ = [
        ("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32), ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32), ("name", ctypes.c_char * 16),
    ]


class Shape(NamedTuple):
    """What two maps must agree in for one to stand in for the other; sizes in octets."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


class Map:
    """A map that the kernel has. Of a per-CPU map, every value is a list, one for each CPU.

    key, value: the layouts; None: octets as they are.
    """

    def __init__(
        self, fd: int, key: Layout | None = None, value: Layout | None = None
    ) -> None:
        """fd: closed by `close`. Raises: BpfError; ValueError if a layout's size is not its."""
        self.fd = fd
        info = MapInfo()
        length = ctypes.c_uint32(ctypes.sizeof(info))
        check(libbpf().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(length)),
              "asking for a map's shape")
        self.name: str = info.name.decode()
        self.id: int = info.id
        self.shape = Shape(
            info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)
        for layout, size in ((key, info.key_size), (value, info.value_size)):
            if layout is not None and layout.size != size:
                raise ValueError(f"{self.name}: a layout of {layout.size} octets for {size}")
        self.key: Any = key
        self.value: Any = value
        self._encode_key = key.pack if key else bytes
        self._decode_key: Callable[[bytes], Any] = key.unpack if key else bytes
        self._encode = value.pack if value else bytes
        self._decode: Callable[[bytes], Any] = value.unpack if value else bytes
        self._cpus = possible_cpus() if info.type in _PER_CPU else 0
        self._stride = -(-info.value_size // 8) * 8 if self._cpus else info.value_size
        self._room = self._stride * max(1, self._cpus)  # octets

    @classmethod
    def open_pinned(cls, path: str | os.PathLike[str]) -> "Map":
        """A map by the file it is pinned at; its entries are octets. Raises: BpfError."""
        return cls(get_pinned(path))

    def close(self) -> None:
        """Let go of it; the kernel keeps it while programs, pins or others hold it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give it a name in a bpffs. Raises: BpfError."""
        pin(self.fd, path)

    def lookup(self, key: Any) -> Any:
        """The value of a key; None if there is none. Raises: BpfError."""
        return self._find(libbpf().bpf_map_lookup_elem, key)

    def pop(self, key: Any) -> Any:
        """Remove a key and return its value; None if there was none. Raises: BpfError."""
        return self._find(libbpf().bpf_map_lookup_and_delete_elem, key)

    def update(self, key: Any, value: Any, flags: int = ANY) -> None:
        """Set a key's value. flags: ANY, NOEXIST or EXIST. Raises: BpfError."""
        check(libbpf().bpf_map_update_elem(self.fd, self._encode_key(key), self._octets(value),
                                           flags), f"writing into {self.name}")

    def delete(self, key: Any) -> bool:
        """Remove a key. Returns: whether it was there. Raises: BpfError."""
        result = libbpf().bpf_map_delete_elem(self.fd, self._encode_key(key))
        if result == -errno.ENOENT:
            return False
        check(result, f"deleting from {self.name}")
        return True

    def keys(self) -> Iterator[Any]:
        """All keys, one system call each. While others write, some may be missed or repeated."""
        following = ctypes.create_string_buffer(self.shape.key_size)
        key: bytes | None = None
        while True:
            result = libbpf().bpf_map_get_next_key(self.fd, key, following)
            if result == -errno.ENOENT:
                return
            check(result, f"walking {self.name}")
            key = following.raw
            yield self._decode_key(key)

    def items(self, batch: int = 4096) -> Iterator[tuple[Any, Any]]:
        """All entries, in batches where the kernel has them for this type. Raises: BpfError."""
        try:
            yield from self._batches(batch)
        except BpfError as error:
            if error.errno not in _NO_BATCH:
                raise
        else:
            return
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def update_all(self, items: Iterable[tuple[Any, Any]], batch: int = 4096) -> None:
        """Set many entries, in batches where the kernel has them. Raises: BpfError."""
        entries = [(self._encode_key(key), self._octets(value)) for key, value in items]
        for start in range(0, len(entries), batch):
            part = entries[start:start + batch]
            count = ctypes.c_uint32(len(part))
            result = libbpf().bpf_map_update_batch(
                self.fd, b"".join(key for key, _ in part), b"".join(value for _, value in part),
                ctypes.byref(count), BatchOptions())
            if -result in {*_NO_BATCH, 524}:
                for key, value in part:
                    check(libbpf().bpf_map_update_elem(self.fd, key, value, ANY),
                          f"writing into {self.name}")
            else:
                check(result, f"writing {len(part)} entries into {self.name}")

    def map_memory(self) -> mmap.mmap:
        """An array's values as shared memory. Needs BPF_F_MMAPABLE; .data and .bss have it."""
        return mmap.mmap(self.fd, self.shape.value_size * self.shape.max_entries)

    def _find(self, function: Callable[..., int], key: Any) -> Any:
        room = ctypes.create_string_buffer(self._room)  # not shared: threads read, too
        result = function(self.fd, self._encode_key(key), room)
        if result:
            if result == -errno.ENOENT:
                return None
            check(result, f"reading {self.name}")
        return self._fields(room.raw)

    def _octets(self, value: Any) -> bytes:
        if not self._cpus:
            return self._encode(value)
        return b"".join(self._encode(part).ljust(self._stride, b"\0") for part in value)

    def _fields(self, octets: bytes) -> Any:
        if not self._cpus:
            return self._decode(octets)
        size = self.shape.value_size
        return [self._decode(octets[start:start + size])
                for start in range(0, len(octets), self._stride)]

    def _batches(self, batch: int) -> Iterator[tuple[Any, Any]]:
        """Entries by bpf_map_lookup_batch, whose cursor is opaque: a key or a bucket's number."""
        key_len, room = self.shape.key_size, self._room
        batch = min(batch, self.shape.max_entries)
        cursor = ctypes.create_string_buffer(max(8, key_len))
        first, result = True, 0
        while result == 0:
            keys = ctypes.create_string_buffer(key_len * batch)
            values = ctypes.create_string_buffer(room * batch)
            count = ctypes.c_uint32(batch)
            result = libbpf().bpf_map_lookup_batch(
                self.fd, None if first else cursor, cursor, keys, values, ctypes.byref(count),
                BatchOptions())
            if result == -errno.ENOSPC:  # a bucket that holds more than the batch
                batch, result = batch * 2, 0
                continue
            if result != -errno.ENOENT:
                check(result, f"reading {self.name}")
            first = False
            key_octets, value_octets = keys.raw, values.raw
            for index in range(count.value):
                yield (self._decode_key(key_octets[index * key_len:(index + 1) * key_len]),
                       self._fields(value_octets[index * room:(index + 1) * room]))


class RingBuffer:
    """Reads a ring buffer; `fileno` can be polled. A callback's exception leaves poll/consume."""

    def __init__(self, source: Map, on_record: Callable[[bytes], object]) -> None:
        """on_record: called with each record. Raises: BpfError."""
        self._on_record = on_record
        self._failure: BaseException | None = None
        self._function = SAMPLE(self._on_sample)
        self._ring = libbpf().ring_buffer__new(source.fd, self._function, None, None)
        check(0 if self._ring else None, f"reading the ring buffer {source.name}")

    def fileno(self) -> int:
        """Readable when there are records."""
        return libbpf().ring_buffer__epoll_fd(self._ring)

    def consume(self) -> int:
        """Hand over all records that there are. Returns: how many. Raises: BpfError."""
        return self._checked(libbpf().ring_buffer__consume(self._ring))

    def poll(self, timeout_ms: int) -> int:
        """Wait for records, and hand them over. Returns: how many. Raises: BpfError."""
        return self._checked(libbpf().ring_buffer__poll(self._ring, timeout_ms))

    def close(self) -> None:
        """Unmap it."""
        if self._ring:
            libbpf().ring_buffer__free(self._ring)
            self._ring = None

    def _checked(self, result: int) -> int:
        failure, self._failure = self._failure, None
        if failure:
            raise failure
        return check(result, "reading a ring buffer")

    def _on_sample(self, _context: int, data: int, size: int) -> int:
        try:
            self._on_record(ctypes.string_at(data, size))
        except BaseException as failure:  # must not pass through C
            self._failure = failure
            return -errno.ECANCELED
        return 0


def pin(fd: int, path: str | os.PathLike[str]) -> None:
    """Give a map, program or link a name in a bpffs. Raises: BpfError."""
    check(libbpf().bpf_obj_pin(fd, os.fsencode(path)), f"pinning at {path}")


def get_pinned(path: str | os.PathLike[str]) -> int:
    """A descriptor of what is pinned at a path. Raises: BpfError."""
    return check(libbpf().bpf_obj_get(os.fsencode(path)), f"opening what is pinned at {path}")
