"""What the program needs to choose by requests: kinds of keys, and Maglev's tables.

Twin: balancer/offload/bpf/request.h, balancer/offload/bpf/schedule.h
"""

from collections.abc import Iterable

from balancer.config import Service
from balancer.pool.schedule import Maglev
from common.bpf.objects import Object

# By their names in `enum key_kind`; others, and keys with depth or len, are left to the portable
# engine.
_KINDS = {
    "http.path": "KEY_PATH", "http.target": "KEY_TARGET", "http.host": "KEY_HOST",
    "http.host+path": "KEY_HOST_AND_PATH", "tls.sni": "KEY_SERVER_NAME", "source": "KEY_SOURCE",
}


def fill_requests(program_file: Object, services: Iterable[tuple[int, Service]]) -> None:
    """Fill the maps by which the program chooses backends. Raises: BpfError.

    services: each with its number.
    """
    numbers = program_file.btf.enum("key_kind")
    kinds = program_file.map("key_kinds")
    tables = program_file.map("tables")
    for number, service in services:
        if service.scheduler != "maglev" or service.hash_balance_factor is not None:
            continue
        tables.update(number, {"ids": bytes(list(Maglev(service.backends).table))})
        kinds.update(number, numbers[_KINDS.get(str(service.key), "KEY_NONE")])
    kinds.close()
    tables.close()
