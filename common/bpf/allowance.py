"""How many packets a second programs leave to the portable engine, by class.

Twin: common/bpf/include/allowance.h
"""

import struct
import time
from collections.abc import Mapping

from common.bpf.objects import Object

_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h: moves by ticks
TICK_LENGTH = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1000 * (1 << 20))  # of 2^-20 ms
_TENTHS = 10  # in a second
UNLIMITED = 0xFFFFFFFF

# Together, what nothing vouches for takes the portable engine less than a tenth of a processor.
BUDGETS = {
    "UP_FLOW": 20_000, "UP_HELD": 12_000, "UP_FIRST": 12_000, "UP_UNFINISHED": 500,
    "UP_TAKEOVER": 10_000,
    "UP_NO_WAY": 50_000, "UP_UNKNOWN": 5_000, "UP_ODD": 2_000, "UP_IP": 1_000, "UP_ICMP": 1_000,
}
# While the portable engine is busy, what nothing vouches for has one of so many parts of its
# budget, and so have those who leave first payloads unfinished.
BUSY_PART = 8
YIELDING = ("UP_UNFINISHED", "UP_TAKEOVER", "UP_UNKNOWN", "UP_ODD", "UP_IP", "UP_ICMP")
# A bridge serves whole flows so, those that a listener refuses; of others it hears from balancers.
BRIDGE_BUDGETS = {**BUDGETS, "UP_FLOW": 50_000, "UP_FIRST": 10_000, "UP_UNKNOWN": 2_000}


def allow(program_file: Object, budgets: Mapping[str, int] | None = None) -> None:
    """Before load: give each class its budget. budgets: packets a second; None: no bounds.

    Raises: KeyError: of a class of the program's there is none.
    """
    ways = sorted(way for way in program_file.btf.enum("way_up") if way.name.startswith("UP_"))
    most = [UNLIMITED if budgets is None else max(budgets[way.name] // _TENTHS, 1)
            for way in ways]
    busy = [max(each // BUSY_PART, 1) if way.name in YIELDING else each
            for way, each in zip(ways, most, strict=True)]
    for name, values in (("budgets", most), ("busy_budgets", busy)):
        program_file.set_variable(name, struct.pack(f"={len(values)}I", *values))
    program_file.set_variable("tick_length", TICK_LENGTH)
