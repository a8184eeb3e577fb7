"""Programs that somebody took off an interface are missed, and put there again."""

import errno
import shutil
import socket
from collections.abc import Callable, Iterator

import pytest

from common.bpf import BpfError, links, pins
from common.bpf.hooks import Hooks
from common.bpf.links import Direction, Link, TcFilter
from common.bpf.objects import Object
from common.bpf.pins import Kept, Pins
from lab.node import Node, wait_until
from lab.topology import Lab
from tests.lab.netns import inside

OWNER = "balancer-5"


class Attached:
    """A program of the tiny object at eth1 of the balancer's host, entered."""

    def __init__(self, node: Node, tiny: Object) -> None:
        self.node, self.object = node, tiny
        self.pins = Pins(OWNER)
        self.pins.reuse_maps(tiny, [Kept("table")])
        tiny.load()
        self.hooks = Hooks(self.pins, self._attach)
        self.index = socket.if_nametoindex("eth1")
        self.hooks.attach(self.index)

    def _attach(self, index: int) -> None:
        self.pins.fill_maps(self.object)
        mode = self.pins.attach_xdp(self.object.program("count"), index)
        how = self.pins.attach_tc(self.object.program("mark"), index, Direction.INGRESS)
        self.pins.keep_links([f"xdp-{mode.value}-{index}", f"{how}-ingress-{index}"])
        self.pins.settle()

    def link(self, kind: str) -> Link:
        (name,) = [name for name in self.pins.links() if name.startswith(kind)]
        return Link.open_pinned(self.pins.link_path(name))


@pytest.fixture
def attached(wire: Lab, tiny: Object) -> Iterator[Attached]:
    with inside(wire.balancer):
        yield Attached(wire.balancer, tiny)
        pins.detach(OWNER)


def replace(attached: Attached) -> None:
    link = attached.link("xdp")
    link.replace(attached.object.program("drop"))
    link.close()


def detach_tc(attached: Attached) -> None:
    """The link, or the filter where the kernel has none."""
    if any(name.startswith("tcx") for name in attached.pins.links()):
        attached.link("tcx").detach()
    else:
        TcFilter(attached.index, Direction.INGRESS, attached.pins.handle).detach()


def is_attached(attached: Attached) -> bool:
    """Whether it could be attached again; a link without a pin is freed a little later."""
    try:
        attached.hooks.attach(attached.index)
    except BpfError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


FAULTS: dict[str, Callable[[Attached], object]] = {
    "XDP detached": lambda attached: attached.link("xdp").detach(),
    "tc detached": detach_tc,
    "another program": replace,
    "pins removed": lambda attached: shutil.rmtree(attached.pins.path),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_taken_off_is_missed_and_put_there_again(attached: Attached, fault: str) -> None:
    before = attached.hooks.are_lost(attached.index)

    FAULTS[fault](attached)
    missed = attached.hooks.are_lost(attached.index)
    wait_until(lambda: is_attached(attached), 5, "the kernel has let go of what had a pin")

    assert (before, missed, attached.hooks.are_lost(attached.index)) == (False, True, False)
    assert len(attached.pins.links()) == 2
    assert "table" in attached.pins.map_paths()


def test_an_interface_that_was_made_anew_gets_the_programs(wire: Lab, attached: Attached) -> None:
    attached.node.run(["ip", "link", "del", "eth1"])
    wire._connect(attached.node, "eth1", wire.node("switch"), "p-balancer")
    index = socket.if_nametoindex("eth1")

    missed = attached.hooks.are_lost(index)
    attached.hooks.attach(index)

    assert (missed, attached.hooks.are_lost(index)) == (True, False)
    assert [name.rpartition("-")[2] for name in attached.pins.links()] == [str(index)] * 2


def test_another_s_program_is_not_thrown_out(attached: Attached) -> None:
    attached.link("xdp").detach()
    other, _ = links.attach_xdp(attached.object.program("drop"), attached.index)

    with pytest.raises(BpfError) as refused:
        attached.hooks.attach(attached.index)
    missed = attached.hooks.are_lost(attached.index)
    other.detach()
    attached.hooks.attach(attached.index)

    assert (refused.value.errno, missed) == (errno.EBUSY, True)
    assert not attached.hooks.are_lost(attached.index)


def test_filters_that_went_with_their_discipline_are_put_there_again(
    wire: Lab, tiny: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BpfError(errno.EINVAL, "no tcx")

    monkeypatch.setattr(links, "attach_tcx", refuse)
    with inside(wire.balancer):
        attached = Attached(wire.balancer, tiny)
        before = attached.hooks.are_lost(attached.index)
        wire.balancer.run(["tc", "qdisc", "del", "dev", "eth1", "clsact"])
        missed = attached.hooks.are_lost(attached.index)
        attached.hooks.attach(attached.index)
        after = attached.hooks.are_lost(attached.index)
        pins.detach(OWNER)

    assert (before, missed, after) == (False, True, False)
