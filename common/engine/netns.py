"""The network namespace that this process is in."""

import os
import socket
import struct
from pathlib import Path

_NAMED = Path("/run/netns")  # ip-netns(8)
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h; Linux 5.14 and later


def cookie() -> int:
    """The network namespace's number that no other one has until the next boot; 0: unknown."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
        except OSError:
            return 0


def inode() -> int:
    """The network namespace's number, which a later one may have again."""
    return os.stat("/proc/self/ns/net").st_ino


def name() -> str:
    """The name that the network namespace has for `ip netns`; empty: none, as the host's own."""
    own = inode()
    try:
        entries = sorted(_NAMED.iterdir())
    except OSError:
        return ""
    return next((entry.name for entry in entries if _is(entry, own)), "")


def _is(entry: Path, number: int) -> bool:
    try:
        return entry.stat().st_ino == number
    except OSError:  # it has just gone
        return False
