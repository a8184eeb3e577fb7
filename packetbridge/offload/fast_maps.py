"""The maps that both programs of the bridge have, as Python writes them."""

from collections.abc import Iterable, Sequence

from common.bpf import secrets as bpf_secrets
from common.bpf.objects import Object
from common.cluster.secrets import Secrets
from common.engine import clock
from common.flow import guesses
from packetbridge.config import Config, Service
from packetbridge.modes.spent import BUCKET, bucket_count

_MAX_DRIFT_NS = 100_000_000


def set_bounds(program_file: Object, config: Config) -> None:
    """What a handoff must prove; before the programs are loaded. Raises: BpfError."""
    program_file.set_variable("accepts_version_1", config.accept_version_1)
    program_file.set_variable("max_guesses", guesses.MAX_GUESSES)


def write_services(program_file: Object, config: Config, services: Sequence[Service]) -> None:
    """Each service at its DSCP. Raises: BpfError."""
    assert config.address is not None
    table = program_file.map("services")
    for service in services:
        table.update(service.dscp, {
            "bridge": config.address.packed, "vip": service.vip.packed,
            "server": service.server.packed, "vip_port": service.port.to_bytes(2, "big"),
            "server_port": service.server_port.to_bytes(2, "big"), "wscale": service.wscale,
        })
    table.close()


def change_services(
    program_file: Object, config: Config, before: Iterable[Service], after: Sequence[Service]
) -> None:
    """The same while packets flow: none at the DSCPs of those that are gone. Raises: BpfError."""
    table = program_file.map("services")
    for codepoint in {service.dscp for service in before} - {service.dscp for service in after}:
        table.update(codepoint, {})
    table.close()
    write_services(program_file, config, after)


def size_spent(program_file: Object, config: Config) -> None:
    """Before load: remember as many handoffs as there may be flows. Raises: BpfError."""
    count = bucket_count(config.max_flows)
    program_file.set_max_entries("spent", count)
    program_file.set_variable("spent_mask", count - 1)


class SpentMap:
    """As modes.spent.Buckets: a program's."""

    def __init__(self, program_file: Object) -> None:
        self._map = program_file.map("spent")
        self.count = self._map.shape.max_entries

    def read(self, index: int) -> bytes:
        """As Buckets."""
        bucket = self._map.lookup(index)
        return BUCKET.pack(bucket.count, *bucket.fingerprints)

    def write(self, index: int, bucket: bytes) -> None:
        """As Buckets."""
        self._map.update(index, bucket)

    def close(self) -> None:
        """Let go of the map."""
        self._map.close()


class SecretsMap:
    """The keys, and what makes the kernel's clock unix time, from which the epoch follows."""

    def __init__(self, program_file: Object) -> None:
        self._map = program_file.map("secrets")
        self._secrets: Secrets | None = None
        self._offset_ns = 0

    def write(self, secrets: Secrets) -> None:
        """Raises: BpfError."""
        self._secrets = secrets
        self._offset_ns = clock.offset_ns()
        self._map.update(0, {
            "secrets": bpf_secrets.of(secrets), "clock_offset_ns": self._offset_ns,
        })

    def keep_time(self) -> None:
        """Follow the clock when it is set. Raises: BpfError."""
        if self._secrets and abs(clock.offset_ns() - self._offset_ns) > _MAX_DRIFT_NS:
            self.write(self._secrets)

    def close(self) -> None:
        """Let go of the map."""
        self._map.close()
