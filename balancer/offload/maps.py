"""The maps that the balancer's program shares with the daemon.

Twin: balancer/offload/bpf/maps.h, which has the same layouts.
"""

import struct

MAX_BACKENDS = 128
INDEX = struct.Struct("=I")  # of arrays
SETTINGS = struct.Struct("=16s16sI4x QIIQ 3Q Q I4x Q")
SERVICE_KEY = struct.Struct("=4s2s2x")
SERVICE = struct.Struct("=IHBBB3x")
BACKEND = struct.Struct("=4sIIBB6s6s6x")
TRAFFIC = struct.Struct("=QQQ")


def place_of(service: int, backend_id: int) -> int:
    """Where a service's backend stands in arrays."""
    return service * MAX_BACKENDS + backend_id
