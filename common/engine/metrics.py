"""The counters for Prometheus, where they are asked for. Nothing here stands on the packet path."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.counters import Counters, Sample
from common.settings import ConfigError


class Observed(Protocol):
    """What is looked at: an engine, or a data path."""

    counters: Counters

    def samples(self) -> list[Sample]: ...


class Collector:
    """Reads the counters when it is asked to."""

    def __init__(self, program: str, observed: Observed) -> None:
        self._prefix = f"l3dsr_{program}_"
        self._observed = observed

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        packets = CounterMetricFamily(
            self._prefix + "packets", "Packets by outcome", labels=["reason"]
        )
        for reason, count in list(self._observed.counters.items()):
            packets.add_metric([reason.value], count)
        yield packets
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for sample in self._observed.samples():
            family = families.get(sample.name)
            if family is None:
                made = CounterMetricFamily if sample.kind == "counter" else GaugeMetricFamily
                family = made(self._prefix + sample.name, sample.help, labels=list(sample.labels))
                families[sample.name] = family
            family.add_metric(list(sample.labels.values()), sample.value)
        yield from families.values()


def serve(program: str, observed: Observed, file: str, address: str, port: int) -> None:
    """Answer Prometheus on address:port, in a thread of its own.

    Raises: ConfigError, naming `file`.
    """
    registry = CollectorRegistry()
    registry.register(Collector(program, observed))
    try:
        start_http_server(port, address, registry=registry)
    except OSError as error:
        remedy = f"an address and port of this host that are free ({error.strerror or error})"
        raise ConfigError(file, "metrics", f"{address}:{port}", remedy) from None
