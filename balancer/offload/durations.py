"""How long handshakes and first acknowledgements took, as the program has counted them.

Twin: balancer/offload/bpf/durations.h
"""

from balancer.offload.maps import place_of
from common.bpf.libbpf import possible_cpus
from common.bpf.objects import Object
from common.histogram import Histogram


class Durations:
    """Of a loaded program, since it was loaded."""

    def __init__(self, program_file: Object) -> None:
        """Raises: BpfError."""
        self._handshakes = program_file.map("handshakes")
        self._first_acks = program_file.map("first_acks")

    def handshakes(self, service: int, others: Histogram) -> Histogram:
        """Of the service of that number, and others. Raises: BpfError."""
        for of_cpu in self._handshakes.lookup(service):
            others = others.plus(of_cpu.counts, of_cpu.sum_ms)
        return others

    def first_acks(self, service: int, backend_id: int, others: Histogram) -> Histogram:
        """Of a backend, and others. Raises: BpfError."""
        found = self._first_acks.lookup(place_of(service, backend_id))
        return others.plus(found.counts, found.sum_ms)

    def begin(self, service: int) -> None:
        """Another service has that number now. Raises: BpfError."""
        self._handshakes.update(service, [{}] * possible_cpus())

    def forget(self, service: int, backend_id: int) -> None:
        """Another backend has that id now. Raises: BpfError."""
        self._first_acks.update(place_of(service, backend_id), {})

    def close(self) -> None:
        """Let go of the maps."""
        self._handshakes.close()
        self._first_acks.close()
