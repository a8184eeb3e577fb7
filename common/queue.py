"""Packets in from the kernel's queue, packets out through raw sockets.

The reader is NetfilterQueue behind an interface of our own, so that another
one can take its place. It copies at most 4016 octets of a packet; a longer one
(jumbo frames) is dropped and counted. The kernel segments GSO packets and
completes checksums before it queues them, which is what rewriting needs.
"""

import errno
import socket
import struct
from collections.abc import Callable

from netfilterqueue import NetfilterQueue

COPY_LEN = 4016
_MAX_QUEUED = 16384
_SOCKET_OCTETS = 32 << 20
_MAX_CACHED = 65536
_IP_MTU = 14  # linux/in.h; the socket module has no name for it
_SO_SNDBUFFORCE = 32


class QueueError(Exception):
    """The queue cannot be had."""


class PacketQueue:
    """NFQUEUE number `number`.

    handler: called with each packet; True lets it go on to the host's stack, False drops it.
    """

    def __init__(self, number: int, handler: Callable[[bytes], bool]) -> None:
        """Raises: QueueError where another process has this queue, or we have no right to it."""
        self._handler = handler
        self._queue = NetfilterQueue()
        self.overruns = 0
        try:
            self._queue.bind(number, self._on_queued, max_len=_MAX_QUEUED, sock_len=_SOCKET_OCTETS)
        except (OSError, RuntimeError) as error:
            raise QueueError(f"NFQUEUE {number} cannot be opened: {error}") from None
        self._descriptor = self._queue.get_fd()

    def fileno(self) -> int:
        """What to poll."""
        return self._descriptor

    def drain(self) -> None:
        """Handle every packet that is waiting."""
        try:
            self._queue.run(block=False)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.overruns += 1  # the kernel dropped packets; TCP sends them again

    def close(self) -> None:
        """Give the queue back."""
        self._queue.unbind()

    def _on_queued(self, packet) -> None:
        if self._handler(packet.get_payload()):
            packet.accept()
        else:
            packet.drop()


class RawSender:
    """Sends whole IPv4 packets, whatever their source address.

    mark: SO_MARK of what is sent.
    """

    def __init__(self, mark: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_OCTETS)
        self._socket.setblocking(False)
        self._sendto = self._socket.sendto
        self._addresses: dict[bytes, tuple[str, int]] = {}
        self.failures = 0

    def send(self, packet: bytes) -> int:
        """Send a packet. Returns: 0, or the MTU that it exceeds. Other failures are counted."""
        destination = packet[16:20]
        address = self._addresses.get(destination)
        if address is None:
            if len(self._addresses) >= _MAX_CACHED:
                self._addresses.clear()
            address = self._addresses[destination] = (socket.inet_ntoa(destination), 0)
        try:
            self._sendto(packet, address)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return _mtu_towards(address)
            self.failures += 1
        return 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _mtu_towards(address: tuple[str, int]) -> int:
    """The MTU of the route to an address, in octets; 0 if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address[0], 9))
            return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        except OSError:
            return 0


def announce(interface: str, address: bytes) -> None:
    """Tell the neighbours that `address` lives here now (gratuitous ARP, RFC 5227 §3)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((interface, 0))
        mac = link.getsockname()[4]
        if len(mac) != 6:
            return  # not Ethernet
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        frame = b"\xff" * 6 + mac + b"\x08\x06" + request
        link.send(frame + mac + address + bytes(6) + address)
