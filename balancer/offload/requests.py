"""What the program needs to choose by requests: kinds of keys, and Maglev's tables.

Twin: balancer/offload/bpf/request.h, balancer/offload/bpf/schedule.h
"""

import struct

from balancer.config import Service
from balancer.pool.schedule import Maglev
from common.bpf.objects import Object

_INDEX = struct.Struct("=I")
_TABLE_LEN = 65544
# Others, and those with depth or len, are left to the portable engine.
_KINDS = {"http.path": 1, "http.target": 2, "http.host": 3, "http.host+path": 4, "tls.sni": 5,
          "source": 6}


def fill_requests(program_file: Object, services: tuple[Service, ...]) -> None:
    """Fill the maps by which the program chooses backends. Raises: BpfError."""
    kinds = program_file.map("key_kinds", _INDEX, _INDEX)
    tables = program_file.map("tables", _INDEX)
    for number, service in enumerate(services):
        if service.scheduler != "maglev" or service.hash_balance_factor is not None:
            continue
        tables.update(number, bytes(list(Maglev(service.backends).table)).ljust(_TABLE_LEN, b"\0"))
        kinds.update(number, _KINDS.get(str(service.key), 0))
    kinds.close()
    tables.close()
