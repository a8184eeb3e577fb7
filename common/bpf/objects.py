"""Object files: opened, adapted, loaded; and the programs in them."""

import ctypes
import errno
import os
import struct
from collections.abc import Collection
from contextlib import closing
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from common.bpf import build
from common.bpf.btf import Btf, BtfError
from common.bpf.libbpf import (
    BpfError,
    OpenOptions,
    TestRunOptions,
    check,
    libbpf,
    take_log,
)
from common.bpf.maps import Map, Shape, get_pinned, pin

XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_REDIRECT = -1, 0, 2, 7
XDP_HAS_FRAGS = 1 << 5
_LIVE_FRAMES = 1 << 1
_CONSTANTS = ".rodata"
_ROOM = 1024  # octets that a test run's packet may grow by


class XdpMd(ctypes.Structure):
    """struct xdp_md. For test runs: data_end = len(frame), and data where metadata comes first."""

    _fields_ = [(name, ctypes.c_uint32) for name in (
        "data", "data_end", "data_meta", "ingress_ifindex", "rx_queue_index", "egress_ifindex")]


class SkBuff(ctypes.Structure):
    """struct __sk_buff. Test runs take mark, priority, ifindex, cb, tstamp, wire_len, gso_*."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in (
            "len", "pkt_type", "mark", "queue_mapping", "protocol", "vlan_present", "vlan_tci",
            "vlan_proto", "priority", "ingress_ifindex", "ifindex", "tc_index")),
        ("cb", ctypes.c_uint32 * 5),
        *((name, ctypes.c_uint32) for name in (
            "hash", "tc_classid", "data", "data_end", "napi_id", "family", "remote_ip4",
            "local_ip4")),
        ("remote_ip6", ctypes.c_uint32 * 4), ("local_ip6", ctypes.c_uint32 * 4),
        *((name, ctypes.c_uint32) for name in ("remote_port", "local_port", "data_meta")),
        ("flow_keys", ctypes.c_uint64), ("tstamp", ctypes.c_uint64),
        ("wire_len", ctypes.c_uint32), ("gso_segs", ctypes.c_uint32),
        ("sk", ctypes.c_uint64), ("gso_size", ctypes.c_uint32), ("tstamp_type", ctypes.c_uint8),
        ("hwtstamp", ctypes.c_uint64),
    ]


class Run(NamedTuple):
    """A test run's outcome. retval: of the program, signed; duration_ns: mean of the repeats."""

    retval: int
    data: bytes
    duration_ns: int


class ProgramInfo(NamedTuple):
    """tag: of the instructions, so that equal ones can be known; sizes in octets."""

    id: int
    tag: bytes
    jited_len: int
    xlated_len: int
    verified_instructions: int
    run_time_ns: int
    run_count: int


class Program:
    """A loaded program, by descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    @classmethod
    def open_pinned(cls, path: str | os.PathLike[str]) -> "Program":
        """A program by the file it is pinned at; close it by os.close(fd). Raises: BpfError."""
        return cls(get_pinned(path), Path(path).name)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give it a name in a bpffs. Raises: BpfError."""
        pin(self.fd, path)

    def info(self) -> ProgramInfo:
        """What the kernel knows of it. run_*: counted while kernel.bpf_stats_enabled is 1."""
        # struct bpf_prog_info: offsets of its fields, which never move.
        room = ctypes.create_string_buffer(256)
        length = ctypes.c_uint32(len(room))
        check(libbpf().bpf_obj_get_info_by_fd(self.fd, room, ctypes.byref(length)),
              f"asking about program {self.name}")
        number, tag, jited_len, xlated_len = struct.unpack_from("=4xI8sII", room)
        run_time_ns, run_count = struct.unpack_from("=QQ", room, 192)
        verified, = struct.unpack_from("=I", room, 216)
        return ProgramInfo(number, tag, jited_len, xlated_len, verified, run_time_ns, run_count)

    def test_run(self, data: bytes, ctx: ctypes.Structure | None = None, repeat: int = 1) -> Run:
        """Run it on a frame, from its Ethernet header on. ctx: XdpMd or SkBuff, updated in place.

        Raises: BpfError (EINVAL: a frame shorter than a header, or a field of ctx it may not set).
        """
        out = ctypes.create_string_buffer(len(data) + _ROOM)
        options = TestRunOptions(
            data_in=data, data_size_in=len(data), data_out=ctypes.addressof(out),
            data_size_out=len(out), repeat=repeat)
        if ctx is not None:
            options.ctx_in = options.ctx_out = ctypes.addressof(ctx)
            options.ctx_size_in = options.ctx_size_out = ctypes.sizeof(ctx)
        result = libbpf().bpf_prog_test_run_opts(self.fd, options)
        if result:
            check(result, f"running {self.name} on {len(data)} octets")
        retval = options.retval
        if retval >= 1 << 31:
            retval -= 1 << 32
        return Run(retval, ctypes.string_at(out, options.data_size_out), options.duration)

    def call(self, ctx: ctypes.Array[ctypes.c_char]) -> int:
        """Run a program of type `syscall`. ctx: its argument, updated in place.

        Returns: its result. Raises: BpfError.
        """
        options = TestRunOptions(ctx_in=ctypes.addressof(ctx), ctx_size_in=len(ctx))
        result = libbpf().bpf_prog_test_run_opts(self.fd, options)
        if result:
            check(result, f"calling {self.name}")
        return options.retval

    def run_live(self, data: bytes, ctx: XdpMd, repeat: int, batch: int = 64) -> None:
        """Run an XDP program on a frame whose verdict is carried out: a packet generator.

        ctx: its ingress_ifindex is where frames come from (and where XDP_TX leaves).
        """
        ctx.data_end = len(data) - ctx.data
        options = TestRunOptions(
            data_in=data, data_size_in=len(data), repeat=repeat, flags=_LIVE_FRAMES,
            batch_size=batch, ctx_in=ctypes.addressof(ctx), ctx_size_in=ctypes.sizeof(ctx))
        check(libbpf().bpf_prog_test_run_opts(self.fd, options), f"sending frames by {self.name}")


class Object:
    """An object file: opened, then adapted, then loaded. Closing ends what nothing else holds."""

    def __init__(self, source: str | os.PathLike[str] | bytes, name: str = "") -> None:
        """source: a path, or the file's octets. Raises: BpfError."""
        take_log()
        options = OpenOptions(object_name=name.encode() or None)
        if isinstance(source, bytes):
            handle = libbpf().bpf_object__open_mem(source, len(source), options)
        else:
            handle = libbpf().bpf_object__open_file(os.fsencode(source), options)
        self.name = name or ("" if isinstance(source, bytes) else Path(source).name)
        check(0 if handle else None, f"opening {self.name or 'an object'}")
        self._handle: int | None = handle

    def __enter__(self) -> "Object":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors of its maps and programs."""
        if self._handle:
            libbpf().bpf_object__close(self._handle)
            self._handle = None

    # --- before load ---

    def set_variable(self, name: str, value: int | bytes) -> None:
        """Set a global variable, `const volatile` ones too. value: an int is little-endian.

        Raises: BpfError (ENOENT); ValueError, OverflowError if it does not fit.
        """
        section, offset, size = self.variable(name)
        octets = value.to_bytes(size, "little", signed=value < 0) if isinstance(value, int) \
            else bytes(value)
        if len(octets) != size:
            raise ValueError(f"{len(octets)} octets for variable {name} of {size}")
        room = ctypes.c_size_t()
        start = libbpf().bpf_map__initial_value(self._map(section), ctypes.byref(room))
        ctypes.memmove(start + offset, octets, size)

    def set_max_entries(self, map_name: str, count: int) -> None:
        """Size a map. Raises: BpfError."""
        check(libbpf().bpf_map__set_max_entries(self._map(map_name), count),
              f"sizing {map_name} to {count}")

    def set_map_flags(self, map_name: str, flags: int) -> None:
        """Set BPF_F_* of a map. Raises: BpfError."""
        check(libbpf().bpf_map__set_map_flags(self._map(map_name), flags),
              f"setting flags of {map_name}")

    def reuse(self, map_name: str, existing: Map) -> None:
        """Use a map that exists in place of a new one. Raises: BpfError."""
        check(libbpf().bpf_map__reuse_fd(self._map(map_name), existing.fd),
              f"taking over {map_name}")

    def omit_maps(self, *names: str) -> None:
        """Do without these maps, which nothing uses that the verifier gets to see."""
        for name in names:
            check(libbpf().bpf_map__set_autocreate(self._map(name), False), f"omitting {name}")

    def join(self, loaded: "Object", own: Collection[str]) -> None:
        """Use the constants and the maps of the same object file, loaded, except maps of its own.

        Constants can be set anew afterwards. Raises: BpfError.
        """
        handle = None
        while handle := libbpf().bpf_object__next_map(self._handle, handle):
            name = libbpf().bpf_map__name(handle).decode()
            if name.endswith(_CONSTANTS):
                room = ctypes.c_size_t()
                start = libbpf().bpf_map__initial_value(handle, ctypes.byref(room))
                ctypes.memmove(start, loaded.initial_value(name), room.value)
            elif name not in own:
                fd = check(libbpf().bpf_map__fd(loaded._map(name)), f"using map {name}")
                check(libbpf().bpf_map__reuse_fd(handle, fd), f"sharing {name}")

    def initial_value(self, section: str) -> bytes:
        """What the variables of a section began with."""
        room = ctypes.c_size_t()
        start = libbpf().bpf_map__initial_value(self._map(section), ctypes.byref(room))
        return ctypes.string_at(start, room.value)

    def select(self, *names: str) -> None:
        """Load these programs only. Raises: BpfError if one is not there."""
        for name in names:
            self._program(name)
        for name in self.program_names():
            libbpf().bpf_program__set_autoload(self._program(name), name in names)

    def set_frags(self, program_name: str, wanted: bool) -> None:
        """Let an XDP program take frames of several buffers, or not. Raises: BpfError."""
        handle = self._program(program_name)
        flags = libbpf().bpf_program__flags(handle) & ~XDP_HAS_FRAGS
        check(libbpf().bpf_program__set_flags(handle, flags | (XDP_HAS_FRAGS if wanted else 0)),
              f"setting flags of {program_name}")

    def load(self) -> "Object":
        """Create maps, verify programs. Raises: BpfError with the end of the verifier's log.

        An object whose types the kernel refuses is refused, too: libbpf would go on without them,
        and nobody could say any more what is in its maps.
        """
        take_log()
        check(libbpf().bpf_object__load(self._handle), f"loading {self.name}")
        if libbpf().bpf_object__btf(self._handle):
            number = libbpf().bpf_object__btf_fd(self._handle)
            check(number if number >= 0 else -errno.EINVAL, f"loading the types of {self.name}")
        return self

    # --- at any time ---

    @cached_property
    def btf(self) -> Btf:
        """Its types. Raises: BpfError (ENODATA) if it was compiled without them."""
        length = ctypes.c_uint32()
        handle = libbpf().bpf_object__btf(self._handle)
        start = libbpf().btf__raw_data(handle, ctypes.byref(length)) if handle else None
        try:
            return Btf(ctypes.string_at(start, length.value) if start else b"")
        except BtfError as error:
            raise BpfError(errno.ENODATA, f"reading the types of {self.name}",
                           [str(error)]) from error

    def program_names(self) -> list[str]:
        """All programs, by the names of their functions."""
        names, handle = [], None
        while handle := libbpf().bpf_object__next_program(self._handle, handle):
            names.append(libbpf().bpf_program__name(handle).decode())
        return names

    def shape(self, map_name: str) -> Shape:
        """A map's shape as it is, or will be, created."""
        handle, library = self._map(map_name), libbpf()
        return Shape(library.bpf_map__type(handle), library.bpf_map__key_size(handle),
                     library.bpf_map__value_size(handle), library.bpf_map__max_entries(handle),
                     library.bpf_map__map_flags(handle))

    # --- after load ---

    def map(self, name: str) -> Map:
        """A map of its own descriptor, which outlives the object; its types are as C has them.

        Raises: BpfError.
        """
        fd = check(libbpf().bpf_map__fd(self._map(name)), f"using map {name}")
        key, value = (self.btf.layout_of(number) if number else None
                      for number in self.btf.map_types(name))
        return Map(os.dup(fd), key, value)

    def program(self, name: str) -> Program:
        """A program, valid while the object is open. Raises: BpfError."""
        return Program(check(libbpf().bpf_program__fd(self._program(name)),
                             f"using program {name}"), name)

    def variable(self, name: str) -> tuple[str, int, int]:
        """Where a global variable is: section (which is a map's name), offset, size in octets.

        Raises: BpfError (ENOENT).
        """
        if name not in self.btf.variables:
            raise BpfError(errno.ENOENT, f"finding variable {name} of {self.name}")
        return self.btf.variables[name]

    def shared_variable(self, name: str) -> memoryview:
        """A global variable's octets, which programs read and write. Raises: BpfError."""
        section, offset, size = self.variable(name)
        with closing(self.map(section)) as variables:
            return memoryview(variables.map_memory())[offset:offset + size]

    def _map(self, name: str) -> int:
        handle = libbpf().bpf_object__find_map_by_name(self._handle, name.encode())
        check(0 if handle else None, f"finding map {name} in {self.name}")
        return handle

    def _program(self, name: str) -> int:
        handle = libbpf().bpf_object__find_program_by_name(self._handle, name.encode())
        check(0 if handle else None, f"finding program {name} in {self.name}")
        return handle


@cache
def types_of(package: str, name: str) -> Btf:
    """The types of a program's object file, which is not loaded for that.

    package, name: as of build.object_of. Raises: BpfError, BuildError.
    """
    with Object(build.object_of(package, name)) as program_file:
        return program_file.btf
