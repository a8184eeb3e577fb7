"""The data path's counters for Prometheus. Nothing here stands on the packet path."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.counters import Counters, Sample


class Observed(Protocol):
    """A data path, as far as it is looked at."""

    counters: Counters

    def samples(self) -> list[Sample]: ...


class _Collector:
    """Reads the data path when it is asked to."""

    def __init__(self, program: str, observed: Observed) -> None:
        self._prefix = f"l3dsr_{program}_"
        self._observed = observed

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        packets = CounterMetricFamily(
            self._prefix + "packets", "Packets by what became of them", labels=["reason"]
        )
        for reason, count in list(self._observed.counters.items()):
            packets.add_metric([reason.value], count)
        yield packets
        families: dict[str, Metric] = {}
        for sample in self._observed.samples():
            family = families.get(sample.name)
            if family is None:
                made = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
                family = made(self._prefix + sample.name, sample.help, labels=list(sample.labels))
                families[sample.name] = family
            family.add_metric(list(sample.labels.values()), sample.value)
        yield from families.values()


def serve(program: str, observed: Observed, address: str, port: int) -> None:
    """Answer Prometheus on address:port, in a thread of its own. Raises: OSError."""
    registry = CollectorRegistry()
    registry.register(_Collector(program, observed))  # type: ignore[arg-type]
    start_http_server(port, address, registry=registry)
