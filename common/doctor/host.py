"""What a doctor sees of its own host's clock."""

import ctypes
import re
from pathlib import Path

_STA_UNSYNC = 0x0040  # linux/timex.h
_TIME_ERROR = 5
_STATUS = Path("/proc/self/status")


class _Timex(ctypes.Structure):
    """struct timex, as far as it is read."""

    _fields_ = [
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long), ("esterror", ctypes.c_long), ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]


def clock_is_synchronised() -> bool:
    """Whether something keeps the clock right, such as NTP (adjtimex(2)); changes nothing."""
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    return state not in (-1, _TIME_ERROR) and not timex.status & _STA_UNSYNC


def may_be_killed(status: Path = _STATUS) -> bool:
    """Whether system calls are filtered: adjtimex is not among those that the units allow, and
    whoever makes another one is killed.
    """
    found = re.search(r"^Seccomp:\s*(\d+)$", status.read_text(), re.MULTILINE)
    return found is None or found[1] != "0"
