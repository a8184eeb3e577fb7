"""libbpf.so.1 through ctypes: signatures, option structures, errors with the library's own words.

The library is opened at first use, so importing this costs nothing on a host without it.
"""

import ctypes
import errno
import logging
import os
from collections import deque
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from functools import cache
from typing import Any

LOG_LINES = 30
_ENOTSUPP = 524  # the kernel's own, which no libc has a text for
log = logging.getLogger(__name__)
_complaints: deque[str] = deque(maxlen=LOG_LINES)


class BpfError(OSError):
    """The kernel or libbpf refuses. str() says what was tried, why it failed, and log's end.

    errno: of errno.h; what: what was tried; log: last lines of libbpf's and the verifier's words.
    """

    def __init__(self, number: int, what: str, lines: Sequence[str] = ()) -> None:
        reason = "Operation not supported" if number == _ENOTSUPP else os.strerror(number)
        super().__init__(errno.EOPNOTSUPP if number == _ENOTSUPP else number, reason)
        self.what = what
        self.log = list(lines)

    def __str__(self) -> str:
        return "\n  ".join([f"{self.what}: {self.strerror}", *self.log])


class Options(Structure):
    """Begins every structure of options: its own size, for compatibility both ways."""

    _fields_ = [("sz", c_size_t)]

    def __init__(self, **values: Any) -> None:
        super().__init__(ctypes.sizeof(type(self)), **values)


class OpenOptions(Options):
    """struct bpf_object_open_opts, its first fields."""

    _fields_ = [("object_name", c_char_p)]


class LinkOptions(Options):
    """struct bpf_link_create_opts, its first field."""

    _fields_ = [("flags", c_uint32)]


class TcHook(Options):
    """struct bpf_tc_hook."""

    _fields_ = [("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32)]


class TcOptions(Options):
    """struct bpf_tc_opts."""

    _fields_ = [
        ("prog_fd", c_int), ("flags", c_uint32), ("prog_id", c_uint32), ("handle", c_uint32),
        ("priority", c_uint32),
    ]


class BatchOptions(Options):
    """struct bpf_map_batch_opts."""

    _fields_ = [("elem_flags", ctypes.c_uint64), ("flags", ctypes.c_uint64)]


class TestRunOptions(Options):
    """struct bpf_test_run_opts."""

    _fields_ = [
        ("data_in", c_char_p), ("data_out", c_void_p),
        ("data_size_in", c_uint32), ("data_size_out", c_uint32),
        ("ctx_in", c_void_p), ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32), ("ctx_size_out", c_uint32),
        ("retval", c_uint32), ("repeat", c_int), ("duration", c_uint32), ("flags", c_uint32),
        ("cpu", c_uint32), ("batch_size", c_uint32),
    ]


PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
SAMPLE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_COUNT = POINTER(c_uint32)
_Signature = tuple[Any, list[Any]]
_SIGNATURES: dict[str, _Signature] = {
    "libbpf_set_print": (c_void_p, [PRINT]),
    "libbpf_num_possible_cpus": (c_int, []),
    "bpf_object__open_file": (c_void_p, [c_char_p, POINTER(OpenOptions)]),
    "bpf_object__open_mem": (c_void_p, [c_char_p, c_size_t, POINTER(OpenOptions)]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__btf": (c_void_p, [c_void_p]),
    "bpf_object__btf_fd": (c_int, [c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__find_map_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_object__find_program_by_name": (c_void_p, [c_void_p, c_char_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__flags": (c_uint32, [c_void_p]),
    "bpf_program__set_flags": (c_int, [c_void_p, c_uint32]),
    "bpf_program__set_autoload": (c_int, [c_void_p, c_bool]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__type": (c_int, [c_void_p]),
    "bpf_map__key_size": (c_uint32, [c_void_p]),
    "bpf_map__value_size": (c_uint32, [c_void_p]),
    "bpf_map__max_entries": (c_uint32, [c_void_p]),
    "bpf_map__map_flags": (c_uint32, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_map_flags": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_autocreate": (c_int, [c_void_p, c_bool]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_map_update_elem": (c_int, [c_int, c_char_p, c_char_p, ctypes.c_uint64]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_char_p, c_void_p]),
    "bpf_map_lookup_and_delete_elem": (c_int, [c_int, c_char_p, c_void_p]),
    "bpf_map_delete_elem": (c_int, [c_int, c_char_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_char_p, c_void_p]),
    "bpf_map_lookup_batch":
        (c_int, [c_int, c_void_p, c_void_p, c_void_p, c_void_p, _COUNT, POINTER(BatchOptions)]),
    "bpf_map_update_batch": (c_int, [c_int, c_char_p, c_char_p, _COUNT, POINTER(BatchOptions)]),
    "bpf_prog_test_run_opts": (c_int, [c_int, POINTER(TestRunOptions)]),
    "bpf_obj_pin": (c_int, [c_int, c_char_p]),
    "bpf_obj_get": (c_int, [c_char_p]),
    "bpf_obj_get_info_by_fd": (c_int, [c_int, c_void_p, _COUNT]),
    "bpf_link_create": (c_int, [c_int, c_int, c_int, POINTER(LinkOptions)]),
    "bpf_link_update": (c_int, [c_int, c_int, c_void_p]),
    "bpf_link_detach": (c_int, [c_int]),
    "bpf_iter_create": (c_int, [c_int]),
    "bpf_tc_hook_create": (c_int, [POINTER(TcHook)]),
    "bpf_tc_attach": (c_int, [POINTER(TcHook), POINTER(TcOptions)]),
    "bpf_tc_detach": (c_int, [POINTER(TcHook), POINTER(TcOptions)]),
    "bpf_tc_query": (c_int, [POINTER(TcHook), POINTER(TcOptions)]),
    "ring_buffer__new": (c_void_p, [c_int, SAMPLE, c_void_p, c_void_p]),
    "ring_buffer__poll": (c_int, [c_void_p, c_int]),
    "ring_buffer__consume": (c_int, [c_void_p]),
    "ring_buffer__epoll_fd": (c_int, [c_void_p]),
    "ring_buffer__free": (None, [c_void_p]),
    "btf__load_vmlinux_btf": (c_void_p, []),
    "btf__free": (None, [c_void_p]),
    "btf__find_by_name_kind": (c_int, [c_void_p, c_char_p, c_uint32]),
    "btf__raw_data": (c_void_p, [c_void_p, _COUNT]),
}


@cache
def libbpf() -> Any:
    """The library. Raises: BpfError (ENOSYS) where there is none, or one before 1.0."""
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError(errno.ENOSYS, "opening libbpf.so.1 (Debian's package libbpf1)",
                       [str(error)]) from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.libbpf_set_print(_on_print)
    return library


def check(result: int | None, what: str) -> int:
    """What a function of libbpf returned, unless that is an error. Raises: BpfError."""
    if result is None or result < 0:
        number = -result if result else ctypes.get_errno()
        raise BpfError(number, what, take_log())
    return result


def take_log() -> list[str]:
    """The last lines of what libbpf said, which it then has not said any more."""
    lines = list(_complaints)
    _complaints.clear()
    return lines


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    return check(libbpf().libbpf_num_possible_cpus(), "counting the CPUs")


_libc = ctypes.CDLL(None)
_libc.vasprintf.argtypes = [POINTER(c_void_p), c_void_p, c_void_p]
_libc.free.argtypes = [c_void_p]
_libc.free.restype = None


@PRINT
def _on_print(level: int, form: int, arguments: int) -> int:
    """Keep the end of what libbpf says: 0 warns, 1 informs, 2 debugs."""
    if level > 1:
        return 0
    text = c_void_p()
    length = _libc.vasprintf(ctypes.byref(text), form, arguments)
    if length < 0:
        return 0
    end = ctypes.string_at((text.value or 0) + max(0, length - 8192)).decode(errors="replace")
    _libc.free(text)
    _complaints.extend(line for line in end.splitlines() if line.strip())
    log.debug("%s", end.rstrip())
    return 0


