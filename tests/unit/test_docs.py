"""The documents say what there is."""

import re

import pytest

from balancer.vips import CONFLICT
from common.engine.repairs import Repairs
from common.verdict import DropReason, Event, Reason
from lab.node import REPOSITORY
from tests.fuzz import datapaths

OPERATIONS = (REPOSITORY / "docs/operations.md").read_text()


@pytest.mark.parametrize("reason", [*Event, *DropReason], ids=str)
def test_every_reason_is_explained(reason: Reason) -> None:
    assert f"`{reason.value}`" in OPERATIONS


@pytest.mark.parametrize("datapath", [datapaths.balancer(), datapaths.bridge()],
                         ids=["balancer", "packetbridge"])
def test_every_metric_is_explained(datapath: datapaths.Balancer | datapaths.Bridge) -> None:
    for sample in datapath.samples():
        end = "_total" if sample.kind == "counter" else ""
        assert f"| `{sample.name}{end}` | {sample.kind} |" in OPERATIONS


def test_every_kind_of_repair_is_explained() -> None:
    for sample in Repairs([CONFLICT]).samples():
        assert f"| `{sample.labels['what']}` |" in OPERATIONS
        assert f"| `{sample.name}` |" in OPERATIONS


def test_links_lead_somewhere() -> None:
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
