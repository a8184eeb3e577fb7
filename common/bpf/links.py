"""Attachments: XDP and tcx by links, which can be pinned; tc's clsact where there is no tcx.

And iterators, which meet all that the kernel has of a kind when somebody reads.
"""

import ctypes
import errno
import os
from enum import Enum

from common.bpf.libbpf import BpfError, LinkOptions, TcHook, TcOptions, check, libbpf, take_log
from common.bpf.maps import get_pinned, pin
from common.bpf.objects import Program

_TRACE_ITER, _BPF_XDP, _TCX_INGRESS, _TCX_EGRESS = 28, 37, 46, 47  # enum bpf_attach_type
_XDP_SKB, _XDP_DRIVER = 1 << 1, 1 << 2
_FIRST = 1 << 3  # BPF_F_BEFORE, nothing named
_TC_REPLACE = 1
_TC_PRIORITY = 1


class Mode(Enum):
    """How XDP runs: in the driver, or after the kernel has made a socket buffer."""

    NATIVE = "native"
    GENERIC = "generic"


class Direction(Enum):
    """A hook of tc."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Link:
    """A program at its hook, as long as a descriptor or pin of the link is there."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open_pinned(cls, path: str | os.PathLike[str]) -> "Link":
        """A link by the file it is pinned at. Raises: BpfError."""
        return cls(get_pinned(path))

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Keep it beyond this process. Raises: BpfError."""
        pin(self.fd, path)

    def replace(self, program: Program) -> None:
        """Put another program in place; no packet meets none. Raises: BpfError."""
        check(libbpf().bpf_link_update(self.fd, program.fd, None),
              f"replacing a program by {program.name}")

    def interface(self) -> int:
        """The index of its interface; 0 once that has gone. Raises: BpfError."""
        # struct bpf_link_info: type, id, prog_id, padding; then of XDP and tcx the index.
        room = (ctypes.c_uint32 * 16)()
        length = ctypes.c_uint32(ctypes.sizeof(room))
        check(libbpf().bpf_obj_get_info_by_fd(self.fd, room, ctypes.byref(length)),
              "asking about a link")
        return room[4]

    def program_id(self) -> int:
        """The number of its program. Raises: BpfError."""
        room = (ctypes.c_uint32 * 16)()
        length = ctypes.c_uint32(ctypes.sizeof(room))
        check(libbpf().bpf_obj_get_info_by_fd(self.fd, room, ctypes.byref(length)),
              "asking about a link")
        return room[2]

    def detach(self) -> None:
        """Take the program off the hook, whoever else holds the link. Raises: BpfError."""
        check(libbpf().bpf_link_detach(self.fd), "detaching a program")
        self.close()

    def close(self) -> None:
        """Let go of it: unless it is pinned, this detaches."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class TcFilter:
    """A program at a clsact hook. It stays, process or not, until `detach`."""

    def __init__(self, index: int, direction: Direction, handle: int) -> None:
        """handle: the filter's number, by which a later process finds it again."""
        self._hook = TcHook(ifindex=index, attach_point=1 if direction is Direction.INGRESS else 2)
        self._handle = handle

    def replace(self, program: Program) -> None:
        """Put a program at the hook, in place of one that is there. Raises: BpfError."""
        take_log()
        result = libbpf().bpf_tc_hook_create(self._hook)
        if result != -errno.EEXIST:
            check(result, "adding the queueing discipline clsact")
        options = TcOptions(prog_fd=program.fd, flags=_TC_REPLACE, handle=self._handle,
                            priority=_TC_PRIORITY)
        take_log()
        check(libbpf().bpf_tc_attach(self._hook, options), f"attaching {program.name} by clsact")

    def program_id(self) -> int:
        """The number of its program; 0 if there is none."""
        options = TcOptions(handle=self._handle, priority=_TC_PRIORITY)
        there = libbpf().bpf_tc_query(self._hook, options) == 0
        take_log()
        return options.prog_id if there else 0

    def detach(self) -> None:
        """Take the program off. The clsact discipline stays: others may use it by now."""
        options = TcOptions(handle=self._handle, priority=_TC_PRIORITY)
        result = libbpf().bpf_tc_detach(self._hook, options)
        if result not in (-errno.ENOENT, -errno.EINVAL, -errno.ENODEV):
            check(result, "detaching a program of clsact")
        take_log()

    def close(self) -> None:
        """Nothing: a filter is no descriptor."""


def attach_xdp(program: Program, index: int, mode: Mode | None = None) -> tuple[Link, Mode]:
    """Attach to an interface; mode None: native where the driver can, else generic.

    Raises: BpfError (EBUSY: the interface has an XDP program).
    """
    for candidate in [mode] if mode else list(Mode):
        flags = _XDP_DRIVER if candidate is Mode.NATIVE else _XDP_SKB
        fd = libbpf().bpf_link_create(program.fd, index, _BPF_XDP, LinkOptions(flags=flags))
        if fd >= 0:
            return Link(fd), candidate
        if fd == -errno.EBUSY:
            break
    check(fd, f"attaching {program.name} to interface {index}, {candidate.value}")
    raise AssertionError("check raises")


def attach_tcx(program: Program, index: int, direction: Direction) -> Link:
    """Attach before all others of that hook. Raises: BpfError (EINVAL: kernel before 6.6)."""
    kind = _TCX_INGRESS if direction is Direction.INGRESS else _TCX_EGRESS
    fd = libbpf().bpf_link_create(program.fd, index, kind, LinkOptions(flags=_FIRST))
    return Link(check(fd, f"attaching {program.name} to interface {index} by tcx"))


def attach_tc(
    program: Program, index: int, direction: Direction, handle: int = 1
) -> Link | TcFilter:
    """Attach by tcx, or by clsact where the kernel has none. Raises: BpfError."""
    try:
        return attach_tcx(program, index, direction)
    except BpfError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    made = TcFilter(index, direction, handle)
    made.replace(program)
    return made


def attach_iterator(program: Program) -> Link:
    """Let a program of the kind `iter/…` be read. Raises: BpfError."""
    fd = libbpf().bpf_link_create(program.fd, 0, _TRACE_ITER, LinkOptions())
    return Link(check(fd, f"attaching the iterator {program.name}"))


def open_iterator(link: Link) -> int:
    """A descriptor of what the program writes in one walk, through this network namespace if it is
    about sockets. Raises: BpfError.
    """
    return check(libbpf().bpf_iter_create(link.fd), "opening an iterator")
