"""What Prometheus is told: packets by reason, a program's samples, the version, the process."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from common import __version__
from common.counters import Counters, Sample
from common.metrics import PACKETS
from common.verdict import reasons_of

_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_FAMILIES: dict[str, type[_Family]] = {
    "counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily,
}


class Observed(Protocol):
    """What is looked at: an engine, or a data path."""

    counters: Counters

    def samples(self) -> list[Sample]: ...


class Collector:
    """Reads the counters when it is asked to."""

    def __init__(self, program: str, observed: Observed) -> None:
        self._prefix = f"l3dsr_{program}_"
        self._program = program
        self._observed = observed
        # into none that is shared: they are asked here
        self._of_process = [ProcessCollector(registry=CollectorRegistry()),
                            PlatformCollector(registry=CollectorRegistry())]

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        build = InfoMetricFamily("l3dsr_build", "What runs here")
        build.add_metric([], {"program": self._program, "version": __version__})
        yield build
        packets = CounterMetricFamily(self._prefix + PACKETS.name, PACKETS.help, labels=["reason"])
        for reason in reasons_of(self._program):
            packets.add_metric([reason.value], self._observed.counters.get(reason, 0))
        yield packets
        families: dict[str, _Family] = {}
        for sample in self._observed.samples():
            family = families.get(sample.name)
            if family is None:
                family = families[sample.name] = _FAMILIES[sample.kind](
                    self._prefix + sample.name, sample.help, labels=list(sample.labels))
            _add(family, sample)
        yield from families.values()
        for collector in self._of_process:
            yield from collector.collect()


def _add(family: _Family, sample: Sample) -> None:
    labels = list(sample.labels.values())
    if isinstance(family, HistogramMetricFamily):
        buckets = [("+Inf" if bound == float("inf") else f"{bound:g}", count)
                   for bound, count in sample.buckets]
        family.add_metric(labels, buckets, sample.value)
    else:
        family.add_metric(labels, sample.value)
