"""The maps that both programs of the bridge have, as Python writes and reads them.

Twin: packetbridge/offload/bpf/bridge.h and cookie.h
"""

import struct
import time
from collections.abc import Sequence

from common.bpf.objects import Object
from common.cluster.secrets import KEY_LEN, Secrets
from packetbridge.config import Config, Service

_INDEX = struct.Struct("=I")
_SERVICE = struct.Struct("=4s4s4s2s2sB3x")  # struct service
_SECRETS = struct.Struct(f"={KEY_LEN}s{KEY_LEN}sIIQ")
_MAX_DRIFT_NS = 100_000_000


def write_services(program_file: Object, config: Config, services: Sequence[Service]) -> None:
    """Each service at its DSCP. Raises: BpfError."""
    assert config.address is not None
    table = program_file.map("services", _INDEX, _SERVICE)
    for service in services:
        table.update(service.dscp, (
            config.address.packed, service.vip.packed, service.server.packed,
            service.port.to_bytes(2, "big"), service.server_port.to_bytes(2, "big"),
            service.wscale,
        ))
    table.close()


class SecretsMap:
    """The keys, and what makes the kernel's clock unix time, from which the epoch follows."""

    def __init__(self, program_file: Object) -> None:
        self._map = program_file.map("secrets", _INDEX, _SECRETS)
        self._secrets: Secrets | None = None
        self._offset_ns = 0

    def write(self, secrets: Secrets) -> None:
        """Raises: BpfError."""
        self._secrets = secrets
        self._offset_ns = _offset_ns()
        keys = [key for key in secrets if key]
        current, previous = (*keys, bytes(KEY_LEN))[:2]
        self._map.update(0, (current, previous, len(keys), 0, self._offset_ns))

    def keep_time(self) -> None:
        """Follow the clock when it is set. Raises: BpfError."""
        if self._secrets and abs(_offset_ns() - self._offset_ns) > _MAX_DRIFT_NS:
            self.write(self._secrets)


def _offset_ns() -> int:
    """Unix time − time since the boot."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
