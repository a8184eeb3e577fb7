"""The counters in the form that Prometheus reads."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common.counters import Counters, Sample


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
