"""Names that only one process of a network namespace has at a time.

A name is an abstract Unix socket: it belongs to the namespace, as the things
that it guards do, and dies with its process, however that ends.
"""

import socket
import struct


class Taken(Exception):
    """Another process has the name. pid: which, as far as that can be seen."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(f"taken by process {pid or 'unknown'}")
        self.pid = pid


class Locks:
    """The names that this process has."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def take(self, name: str) -> None:
        """Raises: Taken."""
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            lock.bind(_address(name))
        except OSError:
            lock.close()
            try:
                pid = holder(name)
            except ConnectionRefusedError:  # it is just about to listen, or just gone
                pid = None
            raise Taken(pid) from None
        lock.listen()  # nobody is answered, but whoever connects learns our process id
        self._sockets.append(lock)

    def release(self) -> None:
        """Let all names go."""
        for lock in self._sockets:
            lock.close()
        self._sockets.clear()


def is_taken(name: str) -> bool:
    """Whether some process has the name."""
    try:
        holder(name)
    except ConnectionRefusedError:
        return False
    return True


def holder(name: str) -> int | None:
    """The process that has the name; None if it cannot be seen from here.

    Raises: ConnectionRefusedError if there is none.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_address(name))
        except BlockingIOError:
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return struct.unpack("=3i", credentials)[0] or None


def _address(name: str) -> str:
    return f"\0l3dsr/{name}"
