"""Measures how large a packet reaches each backend: datagrams of our own, as long as the first link
allows, to the port that discards all.

A router that cannot pass a forwarded packet on tells the client, in words about the bridge, which
the client does not know; about ours it tells us (RFC 1191 §3). A host that nobody listens at says
that the datagram has come through whole (RFC 1122 §3.2.2.1). Silence says nothing.
"""

import errno
import socket
import struct
import time

from balancer.paths import Paths
from common.engine import clock

EVERY_S, LEAST_EVERY_S = 60, 3  # of many paths, of some
WHOLE_S = 60  # that a path is whole is concluded as seldom: another measure may say otherwise
_PACE_S = 0.25  # between two datagrams, on average
_CALM_S = 1  # between two rounds, where routes do not cease to change
_DISCARD_PORT = 9
_HEADERS_LEN = 28  # of IPv4 and UDP
_ERROR = struct.Struct("=IBBBxII")  # linux/errqueue.h: sock_extended_err
# linux/in.h: the socket module has no names for them
_IP_MTU_DISCOVER, _IP_RECVERR, _IP_PMTUDISC_PROBE = 10, 11, 3


class Measurement:
    """Measures in rounds; a source of the loop. What it learns it tells `paths`."""

    def __init__(self, paths: Paths) -> None:
        """Raises: OSError."""
        self._paths = paths
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # not to be fragmented, and as long as we say, whatever the kernel believes of the path
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        self._sent: dict[bytes, int] = {}  # address → octets of the packet
        self._last_s = self._concluded_s = float("-inf")
        self._concludes = True  # this round, of what arrives
        self.deadline_s: float | None = time.monotonic()

    def soon(self) -> None:
        """Routes have changed: measure without waiting for the next round."""
        self._concluded_s = float("-inf")
        self.deadline_s = max(time.monotonic(), self._last_s + _CALM_S)

    # --- as sources.Source ---

    def fileno(self) -> int:
        """As sources.Source."""
        return self._socket.fileno()

    def on_ready(self) -> None:
        """Read what routers and hosts have said; answers are nothing to us."""
        while self._read_error() or self._read_answer():
            pass

    def on_deadline(self) -> None:
        """Send a round."""
        self.on_ready()  # an error that waits would be that of the next datagram
        self._last_s = time.monotonic()
        self._concludes = self._last_s - self._concluded_s >= WHOLE_S
        if self._concludes:
            self._concluded_s = self._last_s
        addresses = list(self._paths)
        self.deadline_s = self._last_s + min(EVERY_S, max(LEAST_EVERY_S, len(addresses) * _PACE_S))
        for address in addresses:
            route = self._paths[address].route
            length = route.hop.mtu or route.mtu
            if length > _HEADERS_LEN:
                self._sent[address] = length
                self._send(address, length)

    def _send(self, address: bytes, length: int) -> None:
        end = socket.inet_ntoa(address), _DISCARD_PORT
        for _ in range(2):  # the first error may be about the datagram before
            try:
                self._socket.sendto(bytes(length - _HEADERS_LEN), end)
            except OSError:
                self.on_ready()  # what it says of a path stands in the error queue
            else:
                return

    def _read_answer(self) -> bool:
        try:
            self._socket.recv(1)
        except OSError:
            return False
        return True

    def _read_error(self) -> bool:
        """Read one error. Returns: whether there was one."""
        try:
            _, ancillary, _, sender = self._socket.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return False
        address = socket.inet_aton(sender[0])
        length = self._sent.get(address, 0)
        for level, kind, octets in ancillary:
            if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR) and length:
                number, _, _, _, info, _ = _ERROR.unpack_from(octets)
                if number == errno.EMSGSIZE and 0 < info < length:
                    self._paths.learn(address, info, clock.now_ms())
                elif number == errno.ECONNREFUSED and self._concludes:
                    self._paths.is_whole(address)
        return True
