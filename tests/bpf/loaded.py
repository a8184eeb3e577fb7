"""Programs that tests have one after the other, since the kernel verifies each for a second.

What is made within `shared()` is made anew as ever, up to its object file, which is opened and
adapted. Only then, where one of the same file, with the same constants, sizes and maps of others,
has been loaded and let go of before, are its programs taken, and its maps hold again what they held
when they had just been loaded. So neither packets nor the daemon's side leave anything behind.

Not for programs that are pinned or attached: these may go on when they are closed.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

from common.bpf.libbpf import BatchOptions, check, libbpf, possible_cpus
from common.bpf.maps import (
    ARRAY,
    HASH,
    LPM_TRIE,
    LRU_HASH,
    LRU_PERCPU_HASH,
    PERCPU_ARRAY,
    PERCPU_HASH,
    RINGBUF,
    Map,
    RingBuffer,
)
from common.bpf.objects import Object

_LOADERS = ("balancer.offload.program", "balancer.offload.tracing", "packetbridge.offload.adopt",
            "packetbridge.offload.splice")
MOST = 8  # objects that are kept, of some 30 MB each
_KEYED = (HASH, LRU_HASH, PERCPU_HASH, LRU_PERCPU_HASH, LPM_TRIE)  # empty when made
_READ_ONLY, _SHARED_MEMORY = 1 << 7, 1 << 10  # BPF_F_RDONLY_PROG, BPF_F_MMAPABLE
_kept: list["_Loaded"] = []  # by nobody used; the latest is the last


@contextmanager
def shared() -> Iterator[None]:
    """Within this, the product's programs are those of earlier tests where these do."""
    with ExitStack() as stack:
        for module in _LOADERS:
            stack.enter_context(mock.patch(f"{module}.Object", Shared))
        yield


def map_names(of: Object) -> Iterator[str]:
    """All maps of an object, as they come in the file."""
    handle = None
    while handle := libbpf().bpf_object__next_map(of._handle, handle):
        yield libbpf().bpf_map__name(handle).decode()


class Shared(Object):
    """An object whose programs and maps are another one's of before, or the next one's."""

    def __init__(self, source: str | os.PathLike[str], name: str = "") -> None:
        super().__init__(source, name)
        told = os.stat(source)
        self._file = os.fspath(source), told.st_mtime_ns, told.st_ino
        self._loaded: _Loaded | None = None

    def load(self) -> "Shared":
        """As Object; arrays are shared memory, too, so that they are soon as they were."""
        wanted = self._wanted()
        found = next((each for each in reversed(_kept) if each.wanted == wanted), None)
        if found:
            _kept.remove(found)
            super().close()
            self._handle = found.handle
            found.restore()
        else:
            reused = {each.name for each in wanted.maps if each.reused}
            for each in wanted.maps:
                if each.shape.type == ARRAY and each.name not in reused:
                    self.set_map_flags(each.name, each.shape.flags | _SHARED_MEMORY)
            super().load()
            own = [Map(libbpf().bpf_map__fd(self._map(each.name))) for each in wanted.maps
                   if each.is_created and each.name not in reused]
            found = _Loaded(wanted, self._handle, own)
        self._loaded = found
        return self

    def close(self) -> None:
        """Leave it to the next who wants the same."""
        if self._loaded is None:
            super().close()
            return
        self._handle = None
        _kept.append(self._loaded)
        self._loaded = None
        while len(_kept) > MOST:
            _kept.pop(0).close()

    def _wanted(self) -> "_Wanted":
        library = libbpf()
        for function in (library.bpf_map__autocreate, library.bpf_program__autoload):
            function.restype, function.argtypes = ctypes.c_bool, [ctypes.c_void_p]
        programs = tuple(
            (name, library.bpf_program__autoload(self._program(name)),
             library.bpf_program__flags(self._program(name))) for name in self.program_names())
        return _Wanted(self._file, programs, tuple(map(self._wanted_map, map_names(self))))

    def _wanted_map(self, name: str) -> "_WantedMap":
        library, handle, room = libbpf(), self._map(name), ctypes.c_size_t()
        start = library.bpf_map__initial_value(handle, ctypes.byref(room))
        return _WantedMap(
            name, self.shape(name), library.bpf_map__autocreate(handle),
            ctypes.string_at(start, room.value) if start else b"",
            _map_number(library.bpf_map__fd(handle)))


class _WantedMap(NamedTuple):
    """A map before load. reused: the number of the one that stands in for it; 0 if none does."""

    name: str
    shape: Any
    is_created: bool
    began: bytes
    reused: int


class _Wanted(NamedTuple):
    """All that makes one loaded object differ from another."""

    file: tuple[str, int, int]
    programs: tuple[tuple[str, bool, int], ...]
    maps: tuple[_WantedMap, ...]


class _Loaded:
    """An object that the kernel has, and how its own maps become as they are now."""

    def __init__(self, wanted: _Wanted, handle: Any, own: list[Map]) -> None:
        self.wanted, self.handle = wanted, handle
        self._restorers = [_restorer(each) for each in own]

    def restore(self) -> None:
        for restorer in self._restorers:
            restorer()

    def close(self) -> None:
        libbpf().bpf_object__close(self.handle)


def _map_number(descriptor: int) -> int:
    """The kernel's, of a map that is there already; before load others have no descriptor yet."""
    if descriptor < 0:
        return 0
    try:
        found = Map(os.dup(descriptor))
    except OSError:  # what libbpf has put into its place
        return 0
    found.close()
    return found.id


def _restorer(own: Map) -> Callable[[], None]:
    """What lets a map hold again what it holds now."""
    if own.shape.flags & _READ_ONLY:
        return lambda: None
    if own.shape.type == ARRAY:
        return _Memory(own).restore
    if own.shape.type == PERCPU_ARRAY:
        return _PerCpu(own).restore
    if own.shape.type in _KEYED:
        return lambda: _empty(own)
    assert own.shape.type == RINGBUF, f"a map of type {own.shape.type} cannot be made as new"
    return lambda: _drain(own)


class _Memory:
    """An array's values."""

    def __init__(self, array: Map) -> None:
        self._len = -(-array.shape.value_size // 8) * 8 * array.shape.max_entries
        self._memory = mmap.mmap(array.fd, self._len)
        began = self._memory[:]
        self._began = began if began.count(0) < len(began) else b""  # hardly any is not empty

    def restore(self) -> None:
        self._memory[:] = self._began or bytes(self._len)


class _PerCpu:
    """An array's values for each CPU, all in one call."""

    def __init__(self, array: Map) -> None:
        self._array, self._count = array, array.shape.max_entries
        stride = -(-array.shape.value_size // 8) * 8 * possible_cpus()
        self._values = ctypes.create_string_buffer(stride * self._count)
        self._keys = (ctypes.c_uint32 * self._count)()
        self._began = self._read()

    def restore(self) -> None:
        if self._read() == self._began:
            return
        count = ctypes.c_uint32(self._count)
        check(libbpf().bpf_map_update_batch(
            self._array.fd, bytes(self._keys), self._began, ctypes.byref(count), BatchOptions()),
            f"restoring {self._array.name}")

    def _read(self) -> bytes:
        count, cursor = ctypes.c_uint32(self._count), ctypes.c_uint32()
        result = libbpf().bpf_map_lookup_batch(
            self._array.fd, None, ctypes.byref(cursor), self._keys, self._values,
            ctypes.byref(count), BatchOptions())
        assert (result, count.value) in ((0, self._count), (-2, self._count)), result
        return self._values.raw


def _empty(own: Map) -> None:
    octets = Map(own.fd)
    for key in list(octets.keys()):
        octets.delete(key)


def _drain(ring: Map) -> None:
    reader = RingBuffer(ring, lambda record: None)
    reader.consume()
    reader.close()
