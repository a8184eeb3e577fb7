"""What the kernel leaves out before a socket has it: classic BPF, a few steps.

Source: linux/filter.h, linux/bpf_common.h
"""

import ctypes
import socket
import struct
from collections.abc import Collection, Sequence

LOAD_OCTET, LOAD_HALF, LOAD_WORD, LOAD_LEN = 0x30, 0x28, 0x20, 0x80
EQUALS, RETURN = 0x15, 0x06
NOTHING = ((RETURN, 0, 0, 0),)
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_INSTRUCTION = struct.Struct("=HBBI")

Step = tuple[int, int, int, int]  # code; steps to leave out if it holds, and if not; operand


def attach(made: socket.socket, steps: Sequence[Step]) -> None:
    """Let these decide what a socket hears, in place of any before. Raises: OSError."""
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*step) for step in steps))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER,
                    struct.pack("@HP", len(steps), ctypes.addressof(code)))


def one_of(values: Collection[bytes], most_len: int) -> list[Step]:
    """The end of a filter: what is loaded has to be one of these. The step before the last refuses.

    most_len: so many octets of a packet are heard.
    """
    return [*((EQUALS, len(values) - place, 0, int.from_bytes(value))
              for place, value in enumerate(values)),
            (RETURN, 0, 0, 0), (RETURN, 0, 0, most_len)]
