"""What a doctor sees of its own host's clock."""

import ctypes

_STA_UNSYNC = 0x0040  # linux/timex.h
_TIME_ERROR = 5


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
