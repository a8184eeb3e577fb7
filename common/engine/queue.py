"""Packets in from the kernel's queue, packets out through raw sockets.

The reader is NetfilterQueue behind an interface of our own, so that another
one can take its place. It copies at most 4016 octets of a packet; a longer one
(jumbo frames) is `is_truncated`. The kernel segments GSO packets and completes
checksums before it queues them, which is what rewriting needs.

A packet that is not let go on is dropped with others, by one message for all:
that saves most of a system call for each.
"""

import errno
import os
import socket
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from netfilterqueue import NetfilterQueue

from common.engine.failures import Failures
from common.wire.family import dst_of, stated_len

COPY_LEN = 4016
_MAX_QUEUED = 16384
_SOCKET_OCTETS = 32 << 20
_MAX_UNANSWERED = 64
_MAX_CACHED = 16384
_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")

# linux/netfilter/nfnetlink_queue.h: a verdict for all packets up to an id
_VERDICT_BATCH = struct.Struct("=IHHII BBH HH")  # nlmsghdr, nfgenmsg, nlattr
_VERDICT = struct.Struct("!II")  # nfqnl_msg_verdict_hdr: verdict, id
_VERDICT_LEN = _VERDICT_BATCH.size + _VERDICT.size
_MSG_VERDICT_BATCH = 3 << 8 | 3  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_VERDICT_BATCH
_NLM_F_REQUEST = 1
_NFQA_VERDICT_HDR = 2
_NF_DROP = 0

# linux/in.h and asm-generic/socket.h; the socket module has no names for them
_IP_MTU = 14
_SO_SNDBUFFORCE = 32


class QueueError(Exception):
    """The queue cannot be had; says why."""


class _Leave(Exception):
    """Takes `drain` out of the reader's loop."""


class Losses(NamedTuple):
    """Packets that the kernel dropped: the queue was full, or the reader's socket was."""

    queue_full: int
    socket_full: int


class PacketQueue:
    """NFQUEUE number `number`.

    handler: called with each packet; True lets it go on to the host's stack, False drops it.
             The packet is cut to COPY_LEN octets.
    """

    def __init__(self, number: int, handler: Callable[[bytes], bool]) -> None:
        """Raises: QueueError where another program has this queue, or we have no right to it."""
        holder = _row(number)
        if holder:
            # Programs have their process id as netlink port, unless it was taken.
            raise QueueError(f"the program with netlink port {holder[1]} has it")
        self._number = number
        self._handler = handler
        self._drop_head = _VERDICT_BATCH.pack(
            _VERDICT_LEN, _MSG_VERDICT_BATCH, _NLM_F_REQUEST, 0, 0,
            0, 0, socket.htons(number), 4 + _VERDICT.size, _NFQA_VERDICT_HDR,
        )
        self._unanswered = 0
        self._last_id = 0
        self._leaving = False
        try:
            self._queue = _bound(number, self._on_queued)
        except OSError as error:
            remedy = "" if _QUEUES.exists() else ", it lacks CONFIG_NETFILTER_NETLINK_QUEUE"
            raise QueueError(f"the kernel refuses it{remedy} ({error})") from None
        self._descriptor = self._queue.get_fd()
        # The kernel takes verdicts only from the port that has the queue, so from this socket.
        self._verdicts = socket.socket(fileno=os.dup(self._descriptor))

    def handle_by(self, handler: Callable[[bytes], bool]) -> None:
        """Have another handler from the next packet on."""
        self._handler = handler

    def fileno(self) -> int:
        """What to poll."""
        return self._descriptor

    def drain(self) -> None:
        """Handle every packet that is waiting, or until the handler has called `leave`."""
        self._leaving = False
        try:
            self._queue.run(block=False)
        except _Leave:
            pass
        finally:
            self._drop_seen()

    deadline_s: float | None = None  # as sources.Source

    def on_ready(self) -> None:
        """As sources.Source."""
        self.drain()

    def on_deadline(self) -> None:
        """As sources.Source; there is none."""

    def leave(self) -> None:
        """Let `drain` return after the packet at hand; a flood would keep it for ever."""
        self._leaving = True

    def losses(self) -> Losses:
        """What was lost before the handler saw it. TCP sends it again."""
        row = _row(self._number)
        return Losses(int(row[5]), int(row[6])) if row else Losses(0, 0)

    def close(self) -> None:
        """Give the queue back; what waits in it is dropped."""
        self._verdicts.close()
        self._queue.unbind()

    def _on_queued(self, packet: Any) -> None:
        if self._handler(packet.get_payload()):
            packet.accept()
        else:
            self._last_id = packet.id
            self._unanswered += 1
            if self._unanswered == _MAX_UNANSWERED:
                self._drop_seen()
        if self._leaving:
            raise _Leave

    def _drop_seen(self) -> None:
        """Drop all packets up to the last one that was not let go on.

        Those before it that were are gone from the queue already.
        """
        if not self._unanswered:
            return
        self._unanswered = 0
        try:
            self._verdicts.send(self._drop_head + _VERDICT.pack(_NF_DROP, self._last_id))
        except OSError:
            self._unanswered = 1  # no memory for the message: the next one says the same


def is_truncated(packet: bytes) -> bool:
    """Whether the queue has cut a packet off."""
    return len(packet) >= COPY_LEN and stated_len(packet) > len(packet)


def _bound(number: int, callback: Callable[[Any], None]) -> NetfilterQueue:
    queue = NetfilterQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a container, the socket's buffer may stay smaller
        queue.bind(number, callback, max_len=_MAX_QUEUED, sock_len=_SOCKET_OCTETS)
    return queue


def _row(number: int) -> list[str]:
    """The kernel's line about a queue: number, port, waiting, mode, range, losses ×2 …"""
    try:
        rows = [line.split() for line in _QUEUES.read_text().splitlines()]
    except OSError:
        return []
    return next((row for row in rows if int(row[0]) == number), [])


class RawSender:
    """Sends whole IPv4 packets, whatever their source address.

    mark: SO_MARK of what is sent.
    """

    def __init__(self, mark: int) -> None:
        """Raises: OSError."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_OCTETS)
        except PermissionError:  # in a container
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_OCTETS)
        self._socket.setblocking(False)
        self._sendto = self._socket.sendto
        self._addresses: dict[bytes, tuple[str, int]] = {}
        self._failures = Failures()

    @property
    def failures(self) -> int:
        """How many packets the kernel did not send."""
        return self._failures.total

    def say_failures(self) -> None:
        """Log those that are not said yet, if it is time to."""
        self._failures.say()

    def send(self, packet: bytes) -> int:
        """Send a packet. Returns: 0, or the MTU that it exceeds. Other failures are counted."""
        destination = dst_of(packet)
        address = self._addresses.get(destination)
        try:
            if address is None:
                address = self._remember(destination)
            self._sendto(packet, address)
        except OSError as error:
            mtu = _mtu_towards(address) if error.errno == errno.EMSGSIZE and address else 0
            if 0 < mtu < len(packet):
                return mtu
            self._failures.note(error, destination)
        return 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _remember(self, destination: bytes) -> tuple[str, int]:
        if len(self._addresses) >= _MAX_CACHED:
            self._addresses.clear()
        address = self._addresses[destination] = (socket.inet_ntoa(destination), 0)
        return address


def _mtu_towards(address: tuple[str, int]) -> int:
    """The MTU of the path to an address, in octets, as far as the kernel knows it; 0: no path."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address[0], 9))
            return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        except OSError:
            return 0
