"""Which sockets this host has: who listens, and whether it knows a connection.

Source: linux/inet_diag.h, linux/sock_diag.h, net/tcp_states.h
"""

import errno
import socket
import struct
from typing import NamedTuple

from common.engine.netlink import DUMP, Answer, Netlink

_SOCK_DIAG, _BY_FAMILY = 4, 20
_ESTABLISHED, _SYN_SENT, _SYN_RECEIVED, _LISTEN, _NEW_SYN_RECEIVED = 1, 2, 3, 10, 12
_LISTENING = 1 << _LISTEN
_ULP_INFO = 19  # INET_DIAG_ULP_INFO
_WITH_INFO = 1 << 1  # INET_DIAG_INFO, with which the ULP is told
_EVERY_COOKIE = b"\xff" * 8
_ASKED = struct.Struct("=BBBxI2s2s4s12x4s12xI8s")  # inet_diag_req_v2, with IPv4 addresses
_TOLD = struct.Struct("=BBxx2s2s16s16s12xxxxxIIxxxxxxxx")  # inet_diag_msg
_MAPPED = bytes(10) + b"\xff\xff"


class Listening(NamedTuple):
    """A listening socket. address: 4 octets, zeros for all; queue, room: of its accept queue."""

    address: bytes
    port: int
    is_mptcp: bool
    queue: int
    room: int


class Diag:
    """Asks the kernel, and waits for its answer."""

    def __init__(self) -> None:
        self._netlink: Netlink | None = None

    def listeners(self) -> list[Listening]:
        """Those that IPv4 connections reach. Raises: OSError."""
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            question = _asked(family, _LISTENING, b"\0\0", bytes(4), b"\0\0", bytes(4))
            for answer in self._ask(question, DUMP):
                kind, _, port, _, source, _, queue, room = _TOLD.unpack(answer.fixed)
                address = _ipv4_of(kind, source)
                if address is not None:
                    found.append(Listening(address, int.from_bytes(port), b"mptcp" in
                                           answer.attributes.get(_ULP_INFO, b""), queue, room))
        return found

    def state(self, local: bytes, lport: int, remote: bytes, rport: int) -> int:
        """The TCP state of a connection, 0: there is none. Raises: OSError."""
        try:
            answer = self._ask(_asked(
                socket.AF_INET, 0xFFFFFFFF, lport.to_bytes(2), local, rport.to_bytes(2), remote))[0]
        except OSError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise
        _, state, *_ = _TOLD.unpack(answer.fixed)
        return 0 if state == _LISTEN else int(state)

    def _ask(self, question: bytes, flags: int = 0) -> list[Answer]:
        """Raises: OSError, also where the kernel has nothing of this."""
        if self._netlink is None:
            self._netlink = Netlink(_SOCK_DIAG)
        return self._netlink.ask(_BY_FAMILY, question, flags=flags, fixed_len=_TOLD.size)


def is_opening(state: int) -> bool:
    """Whether a connection's handshake is not complete."""
    return state in (_SYN_SENT, _SYN_RECEIVED, _NEW_SYN_RECEIVED)


def _asked(
    family: int, states: int, sport: bytes, source: bytes, dport: bytes, destination: bytes
) -> bytes:
    return _ASKED.pack(family, socket.IPPROTO_TCP, _WITH_INFO, states, sport, dport, source,
                       destination, 0, _EVERY_COOKIE)


def _ipv4_of(family: int, address: bytes) -> bytes | None:
    """The IPv4 address that a socket is bound to; None: it takes no IPv4."""
    if family == socket.AF_INET or address[:12] == _MAPPED:
        return address[:4] if family == socket.AF_INET else address[12:]
    return None if any(address) else bytes(4)
