"""Questions to the kernel by netlink, in few octets and little time: rtnetlink and generic netlink.

pyroute2 is for what is changed on the host at start and end. What is asked again and again while
packets are handled shares its processor with them, so here a question is one `send` and its
answers are read by `struct`.

Source: linux/netlink.h, linux/rtnetlink.h, linux/genetlink.h
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300  # flags of a request
_ERROR, _DONE = 2, 3  # types that every protocol has
_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_PATIENCE = struct.pack("@ll", 2, 0)  # timeval
_READ_LEN = 1 << 17
_MOST_HEARD = 1000  # the rest is still there next time

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # nlattr
_GENERIC = struct.Struct("=BBH")  # genlmsghdr: command, version
_U16, _I32 = struct.Struct("=H"), struct.Struct("=i")
_CTRL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2

Attributes = dict[int, bytes]


class Answer(NamedTuple):
    """A message: its fixed part, as long as was asked for, and its attributes by number."""

    fixed: bytes
    attributes: Attributes


class Netlink:
    """A socket that asks, and waits for the answer: not for the packet path.

    groups: bits of the multicast groups to hear of; read by `heard`.
    port:   its address; 0: the process's id, if that is free, else any.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE, groups: int = 0, port: int = 0) -> None:
        """Raises: OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.bind((port, groups))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        self._sequence = 0
        self._families: dict[str, int] = {}

    def fileno(self) -> int:
        """What to poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(
        self, kind: int, fixed: bytes, attributes: Attributes | None = None, flags: int = 0,
        fixed_len: int = 0,
    ) -> list[Answer]:
        """Ask, and wait for all answers. Raises: OSError with the kernel's errno.

        fixed_len: of the fixed part of answers, where that is not as long as the question's.
        """
        self._sequence += 1
        body = fixed + b"".join(
            attribute(number, value) for number, value in (attributes or {}).items())
        self._socket.send(_HEADER.pack(
            _HEADER.size + len(body), kind, REQUEST | flags, self._sequence, 0) + body)
        answers: list[Answer] = []
        while not self._is_all(answers, fixed_len or len(fixed), bool(flags & (DUMP | ACK))):
            pass
        return answers

    def ask_generic(self, family: str, command: int, attributes: Attributes) -> Attributes:
        """Ask a family of generic netlink. Raises: OSError (ENOENT: the kernel has none such)."""
        number = self._families.get(family)
        if number is None:
            found = self.ask(_CTRL, _GENERIC.pack(_GETFAMILY, 1, 0),
                             {_FAMILY_NAME: family.encode() + b"\0"})
            number = _U16.unpack(found[0].attributes[_FAMILY_ID])[0]
            self._families[family] = number
        return self.ask(number, _GENERIC.pack(command, 1, 0), attributes)[0].attributes

    def heard(self) -> bool:
        """Whether something was told to our groups since the last call; does not wait."""
        found = False
        for _ in range(_MOST_HEARD):
            try:
                self._socket.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more was told than could be kept
                    raise
            found = True
        return found

    def _is_all(self, answers: list[Answer], fixed_len: int, has_end: bool) -> bool:
        """Read what has come; whether that was the end."""
        octets = self._socket.recv(_READ_LEN)
        for kind, sequence, payload in messages(octets):
            if sequence != self._sequence:
                continue  # the late answer to a question that was given up
            if kind == _ERROR:
                code = -_I32.unpack_from(payload)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return True
            if kind == _DONE:
                return True
            answers.append(Answer(payload[:fixed_len], attributes_in(payload, fixed_len)))
            if not has_end:
                return True
        return False


def attribute(number: int, value: bytes) -> bytes:
    """An attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value + bytes(-len(value) % 4)


def attributes_in(octets: bytes, off: int = 0) -> Attributes:
    """The attributes from an offset on, by number."""
    found = {}
    while off + _ATTRIBUTE.size <= len(octets):
        length, number = _ATTRIBUTE.unpack_from(octets, off)
        if length < _ATTRIBUTE.size:
            break
        found[number & _TYPE_MASK] = octets[off + _ATTRIBUTE.size:off + length]
        off += length + 3 & ~3
    return found


def messages(octets: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The type, sequence number and payload of each message in what was read."""
    off = 0
    while off + _HEADER.size <= len(octets):
        length, kind, _, sequence, _ = _HEADER.unpack_from(octets, off)
        if length < _HEADER.size:
            return
        yield kind, sequence, octets[off + _HEADER.size:off + length]
        off += length + 3 & ~3
