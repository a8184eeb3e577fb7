"""The dashboard and the alerts in docs/: right in themselves, and about metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from common.counters import Metric, Sample, new_counters
from common.engine.collector import Collector
from common.histogram import Histogram
from common.verdict import reasons_of
from lab.node import REPOSITORY
from tests.unit.test_metrics import PROGRAMS, Observed

ALERTS = REPOSITORY / "docs/alerts.yml"
DASHBOARD = REPOSITORY / "docs/grafana/l3dsr.json"
TESTS = REPOSITORY / "tests/alerts/alerts.test.yml"
OWN = re.compile(r"\b(?:l3dsr|process|python)_[a-z_]+")
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="this system has no promtool (Debian's prometheus)")


def _sample(metric: Metric) -> Sample:
    labels = ["x"] * len(metric.labels)
    return metric.of(Histogram(), *labels) if metric.kind == "histogram" else metric.at(0, *labels)


def exported() -> set[str]:
    """The names of all series of both programs."""
    names: set[str] = set()
    for program, declared in PROGRAMS.items():
        registry = CollectorRegistry()
        samples = [_sample(metric) for metric in declared if metric.name != "packets"]
        registry.register(Collector(program, Observed(new_counters(), *samples)))
        lines = generate_latest(registry).decode().splitlines()
        names |= {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")}
    return names


def _expressions(node: Any) -> Iterator[str]:
    """Of a dashboard: its targets', and its variables'."""
    if isinstance(node, dict):
        yield from (node[key] for key in ("expr", "query") if isinstance(node.get(key), str))
        for value in node.values():
            yield from _expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from _expressions(value)


def expressions(path: Path) -> str:
    if path is DASHBOARD:
        return "\n".join(_expressions(json.loads(path.read_text())))
    found = re.findall(r"expr: (.*?)\n        (?:for|labels):", path.read_text(), re.DOTALL)
    return "\n".join(found)


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_every_metric_that_is_named_is_exported(path: Path) -> None:
    named = set(OWN.findall(expressions(path)))

    assert len(named) > 10
    assert named <= exported()


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_every_reason_that_is_named_is_one(path: Path) -> None:
    known = {reason.value for program in PROGRAMS for reason in reasons_of(program)}
    named = re.findall(r'reason=~?"([^"]+)"', expressions(path))

    for words in named:
        for word in words.split("|"):
            assert any(re.fullmatch(word, reason) for reason in known), word
    assert named


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    tested = TESTS.read_text()

    assert len(alerts) > 10
    for alert in alerts:
        assert f"alertname: {alert}\n        exp_alerts:\n" in tested
        assert f"alertname: {alert}\n        exp_alerts: []" in tested


@needs_promtool
def test_the_rules_are_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)],
                          capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_alerts_fire_when_they_shall_and_say_what_is_wrong() -> None:
    done = subprocess.run(["promtool", "test", "rules", str(TESTS)],
                          capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_what_is_told_is_as_prometheus_wants_it() -> None:
    for program, declared in PROGRAMS.items():
        registry = CollectorRegistry()
        samples = [_sample(metric) for metric in declared if metric.name != "packets"]
        registry.register(Collector(program, Observed(new_counters(), *samples)))

        done = subprocess.run(["promtool", "check", "metrics"], input=generate_latest(registry),
                              capture_output=True, check=False)

        assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [(x, y) for each in panels for place in [each["gridPos"]]
             for x in range(place["x"], place["x"] + place["w"])
             for y in range(place["y"], place["y"] + place["h"])]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({each["id"] for each in panels}) == len(panels)
