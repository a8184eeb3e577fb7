"""The documents say what there is."""

import re
from pathlib import Path

import pytest

import balancer.config
import packetbridge.config
from balancer.vips import CONFLICT
from common.engine.repairs import Repairs
from common.settings.schema import settings_of
from common.verdict import DropReason, Event, Reason
from lab.node import REPOSITORY
from tests.fuzz import datapaths

OPERATIONS = (REPOSITORY / "docs/operations.md").read_text()
DECISIONS = sorted((REPOSITORY / "docs/decisions").glob("*.md"))
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *DECISIONS)


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
        assert f"| `{sample.name}_total` | {sample.kind} |" in OPERATIONS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        path = page.parent / target if target else page

        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def test_decisions_have_the_numbers_of_their_files() -> None:
    numbers = []
    for path in DECISIONS:
        number = int(path.name[:4])
        assert path.read_text().startswith(f"# {number}. "), path.name
        numbers.append(number)

    assert len(set(numbers)) == len(numbers) > 30


def test_every_setting_that_takes_a_restart_is_named() -> None:
    (said,) = re.findall(r"- \*\*What takes a restart\*\*:(.*?)\. A file", OPERATIONS, re.DOTALL)
    taking = {entry.key for shape in (balancer.config.Config, packetbridge.config.Config)
              for entry in settings_of(shape) if entry.setting.restart}

    assert set(re.findall(r"`(\w+)`", said)) == taking


def anchors(page: Path) -> set[str]:
    """What links may name in a page: its headings, as GitHub makes anchors of them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
