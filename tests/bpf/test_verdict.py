"""One list of reasons in Python and C, whatever their numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.bpf import build, pins, reasons
from common.bpf.objects import Object
from common.bpf.pins import Pins
from common.bpf.reasons import ReasonCounts
from common.counters import new_counters
from common.verdict import DropReason, Event
from lab.node import Node
from lab.topology import Lab
from tests.lab.netns import inside

OWNER = "balancer-3"
INCLUDE = '#include "common/bpf/include/verdict.h"'
COUNTING = INCLUDE + """

SEC("xdp") int drop(struct xdp_md *ctx)
{
	count(REASON_BAD_FLAGS);
	count(REASON_TRUNCATED);
	count(REASON_TRUNCATED);
	return XDP_DROP;
}
char LICENSE[] SEC("license") = "GPL";
"""

UNCOUNTED = {"adopted.bpf.c"}  # it sees no packets


@pytest.fixture
def host(wire: Lab) -> Iterator[Node]:
    """A host whose pins are removed at the end."""
    node = wire.node("balancer")
    yield node
    with inside(node):
        pins.detach(OWNER)


@pytest.mark.parametrize(
    "source", [each for each in build.sources() if each.name not in UNCOUNTED],
    ids=lambda source: source.name)
def test_python_knows_every_reason_of_the_programs(source: Path) -> None:
    numbered = reasons.numbered(Object(build.compile(source)).btf)

    assert set(numbered.values()) == {*Event, *DropReason}
    assert sorted(numbered) == list(range(len(numbered)))


def start(program_file: Object) -> ReasonCounts:
    """As a daemon starts, and a packet is dropped."""
    own = Pins(OWNER)
    own.reuse_maps(program_file, [reasons.kept(lambda: counts)])
    program_file.load()
    counts = ReasonCounts(program_file)
    own.fill_maps(program_file)
    program_file.program("drop").test_run(bytes(64))
    own.settle()
    return counts


def test_counts_are_found_by_name_where_their_numbers_have_changed(
    host: Node, compiled: Callable[[str], Path]
) -> None:
    """As after an upgrade: one has come in front, two have changed places, one has gone."""
    header = (build.ROOT / "common/bpf/include/verdict.h").read_text()
    older = (header.replace("\tREASON_TABLE_FULL,\n", "")
             .replace("\tREASON_NOT_OURS,", "\tREASON_TABLE_FULL,\n\tREASON_NOT_OURS,")
             .replace("\tREASON_NO_BACKEND,\n", "")
             .replace("\tREASON_TRUNCATED,", "\tREASON_X,")
             .replace("\tREASON_BAD_FLAGS,", "\tREASON_TRUNCATED,")
             .replace("\tREASON_X,", "\tREASON_BAD_FLAGS,"))
    with inside(host):
        first = start(Object(compiled(COUNTING.replace(INCLUDE, older))))

        second = start(Object(compiled(COUNTING)))
        third = start(Object(compiled(COUNTING)))

    assert first.numbered != second.numbered
    assert {reason: total for reason, total in third.totals().items() if total} == {
        DropReason.BAD_FLAGS: 3, DropReason.TRUNCATED: 6}
    counters = new_counters()
    third.add_to(counters)
    third.add_to(counters)
    assert counters == {DropReason.BAD_FLAGS: 3, DropReason.TRUNCATED: 6}


def test_a_reason_that_python_does_not_know_is_an_error(compiled: Callable[[str], Path]) -> None:
    header = (build.ROOT / "common/bpf/include/verdict.h").read_text()
    program = COUNTING.replace(INCLUDE, header.replace(
        "\tREASON_NOT_OURS,", "\tREASON_ODD,\n\tREASON_NOT_OURS,"))

    with pytest.raises(KeyError, match="ODD"):
        reasons.numbered(Object(compiled(program)).btf)
