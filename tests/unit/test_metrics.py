"""What Prometheus is told: names, units, labels, and every reason from the start."""

import math
import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from balancer import metrics as of_balancer
from common import __version__
from common.counters import Counters, Metric, Sample, new_counters
from common.engine.collector import Collector
from common.histogram import BOUNDS_MS, Histogram
from common.verdict import DropReason, Event, Reason, reasons_of
from lab.node import REPOSITORY
from packetbridge import metrics as of_bridge
from tests.fuzz import datapaths

PROGRAMS = {"balancer": of_balancer.METRICS, "packetbridge": of_bridge.METRICS}
BASE_UNITS = ("_seconds", "_bytes", "_ratio")
OTHER_UNITS = re.compile("octet|_ms$|milli|micro|percent|kilo|mega|_total$|_bits")
OF_BACKEND = ("service", "backend", "address")
THE_OTHER = {"balancer": "packetbridge", "packetbridge": "balancer"}


class Observed:
    """Counters and samples that a test makes."""

    def __init__(self, counters: Counters, *samples: Sample) -> None:
        self.counters = counters
        self._samples = list(samples)

    def samples(self) -> list[Sample]:
        return self._samples


def exported(program: str, observed: Observed) -> dict[str, float]:
    """By name and labels."""
    registry = CollectorRegistry()
    registry.register(Collector(program, observed))
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())):
            sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


DECLARED = [(program, metric) for program, all_ in PROGRAMS.items() for metric in all_]


@pytest.mark.parametrize("program, metric", DECLARED,
                         ids=lambda each: getattr(each, "name", each))
def test_names_and_units_are_prometheus_own(program: str, metric: Metric) -> None:
    assert re.fullmatch("[a-z][a-z_]*", metric.name)
    assert not OTHER_UNITS.search(metric.name)
    assert metric.kind in ("counter", "gauge", "histogram")
    assert metric.kind != "histogram" or metric.name.endswith("_seconds")
    if metric.name.startswith("backend_"):
        assert metric.labels[:3] == OF_BACKEND


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_name_is_declared_twice(program: str) -> None:
    names = [metric.name for metric in PROGRAMS[program]]

    assert len(set(names)) == len(names)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_reason_that_a_program_can_have_is_there_at_0(program: str) -> None:
    found = exported(program, Observed(new_counters()))

    name = f"l3dsr_{program}_packets_total reason="
    reasons = {key.removeprefix(name): value for key, value in found.items()
               if key.startswith(name)}
    assert reasons == dict.fromkeys((reason.value for reason in reasons_of(program)), 0)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_source_of_a_program_names_a_reason_that_is_the_others_alone(program: str) -> None:
    def named_in(folder: str, reason: Reason) -> bool:
        name = reason.name
        words = re.compile(rf"\b(DropReason\.{name}|Event\.{name}|REASON_{name}"
                           rf"|{name.replace('LIMITED_', 'UP_', 1)}|{name})\b")
        return any(words.search(path.read_text()) for path in (REPOSITORY / folder).rglob("*.*")
                   if path.suffix in (".py", ".c", ".h"))

    others = {*Event, *DropReason} - set(reasons_of(program))
    assert len(others) > 8
    for reason in others:
        assert not named_in(program, reason), reason
        assert reason in reasons_of(THE_OTHER[program])


@pytest.mark.parametrize("program, datapath", [
    ("balancer", datapaths.balancer()), ("packetbridge", datapaths.bridge())], ids=PROGRAMS)
def test_what_is_exported_is_as_it_is_declared(
    program: str, datapath: datapaths.Balancer | datapaths.Bridge
) -> None:
    of_name = {metric.name: metric for metric in PROGRAMS[program]}

    for sample in datapath.samples():
        metric = of_name[sample.name]
        assert (sample.kind, sample.help, tuple(sample.labels)) == (
            metric.kind, metric.help, metric.labels)


def test_version_and_process_are_told() -> None:
    found = exported("balancer", Observed(new_counters()))

    assert found[f"l3dsr_build_info program=balancer version={__version__}"] == 1
    assert found["process_resident_memory_bytes"] > 1 << 20
    assert found["process_open_fds"] >= 3
    assert found["process_cpu_seconds_total"] > 0
    assert any(name.startswith("python_info ") for name in found)


def test_a_backend_is_told_by_its_address_too() -> None:
    datapath = datapaths.balancer()

    found = exported("balancer", Observed(datapath.counters, *datapath.samples()))

    name = "l3dsr_balancer_backend_bytes_total address=192.168.33.20 backend=1 service=web"
    assert found[name] == 0
    assert found["l3dsr_balancer_flows_limit"] == datapaths.MAX_FLOWS


@pytest.mark.parametrize("duration_ms, bound_ms", [
    (0, 1), (0.2, 1), (1, 1), (1.001, 2), (2, 2), (3, 4), (4, 4), (4.5, 8), (1023, 1024),
    (4096, 4096), (4096.1, math.inf), (1e9, math.inf),
])
def test_a_duration_is_counted_at_the_bound_that_is_not_below_it(
    duration_ms: float, bound_ms: float
) -> None:
    histogram = Histogram()

    histogram.note(duration_ms)

    place = histogram.counts.index(1)
    assert (*BOUNDS_MS, math.inf)[place] == bound_ms
    assert sum(histogram.counts) == 1
    assert histogram.sum_ms == duration_ms


def test_a_histogram_is_told_in_seconds_and_cumulated() -> None:
    histogram = Histogram()
    for duration_ms in (0.5, 3, 3, 100_000):
        histogram.note(duration_ms)

    sample = of_balancer.HANDSHAKE_DURATION.of(histogram, "web")
    found = exported("balancer", Observed(new_counters(), sample))

    name = "l3dsr_balancer_handshake_duration_seconds"
    assert [found[f"{name}_bucket le={bound} service=web"]
            for bound in ("0.001", "0.002", "0.004", "4.096", "+Inf")] == [1, 1, 3, 3, 4]
    assert found[f"{name}_count service=web"] == 4
    assert found[f"{name}_sum service=web"] == pytest.approx(100.0065)
    few = of_balancer.BACKEND_FIRST_ACK.of(histogram, "web", "1", "192.0.2.20", step=2)
    assert few.buckets == ((0.001, 1), (0.004, 3), (0.016, 3), (0.064, 3), (0.256, 3), (1.024, 3),
                           (4.096, 3), (math.inf, 4))
    assert str(sample) == "handshake_duration_seconds{service=web}=100.007/4"
