"""Time: one clock that nobody sets, for how long things last, and its distance from unix time.

Unix time makes the epochs of cookies and the SYN-ACK's timestamp, which hosts must agree on. It can
be set by an administrator, by NTP, or by who feeds NTP, so nothing that waits or grows old goes by
it. The clock runs since the boot and is the same for all processes: what outlives a daemon in
pinned maps keeps its age.
"""

import time

_NS_PER_MS = 1_000_000


def now_ns() -> int:
    """Time since the boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def now_ms() -> int:
    """Time since the boot."""
    return now_ns() // _NS_PER_MS


def offset_ns() -> int:
    """Unix time − time since the boot; another when the clock has been set."""
    return time.time_ns() - now_ns()


def offset_ms() -> int:
    """The same in ms."""
    return offset_ns() // _NS_PER_MS
