"""What outlives a daemon: pinned maps and links, taken over by the next one."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.bpf import links, maps, pins
from common.bpf.objects import Object
from common.bpf.pins import Kept, Pins
from lab.node import Node, wait_until
from lab.topology import Lab
from tests.bpf.tiny import TINY, arrives, is_lost
from tests.lab.netns import inside, python

OWNER = "balancer-3"
NO_COMMON_LRU = 1 << 1

# A daemon's start, and its sudden end once a line comes.
DAEMON = f"""
import os, socket, sys
from common.bpf.objects import Object
from common.bpf.pins import Kept, Pins
with Object(sys.argv[1]) as program_file:
    own = Pins({OWNER!r})
    reused = own.reuse_maps(program_file, [Kept("table")])
    program_file.load()
    own.fill_maps(program_file)
    table = program_file.map("table")
    table.update(len(list(table.keys())), (0, 0))
    own.attach_xdp(program_file.program(sys.argv[2]), socket.if_nametoindex("eth1"))
    own.settle()
print(reused, sorted(table.keys()), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def host(wire: Lab) -> Iterator[Node]:
    """A host whose pins are removed at the end."""
    node = wire.node("balancer")
    yield node
    with inside(node):
        pins.detach(OWNER)


def start(program_file: Object, *kept: Kept) -> tuple[Pins, list[str]]:
    """As a daemon starts, without attaching anything. Returns: also the maps that are used on."""
    own = Pins(OWNER)
    reused = own.reuse_maps(program_file, kept)
    program_file.load()
    own.fill_maps(program_file)
    own.settle()
    return own, reused


def test_a_killed_daemon_s_program_goes_on_and_the_next_one_takes_over(
    wire: Lab, host: Node, server: socket.socket, compiled: Callable[[str], Path]
) -> None:
    path = str(compiled(TINY))

    def run_and_kill(program: str) -> str:
        daemon = host.popen(python(DAEMON, path, program), text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)
        line = daemon.stdout.readline()
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.communicate()
        return line.strip()

    first = run_and_kill("drop")
    dropped = is_lost(wire, server)
    second = run_and_kill("count")

    assert first == "[] [0]"
    assert dropped
    assert second == "['table'] [0, 1]"
    assert arrives(wire, server)


def test_a_program_is_replaced_without_a_gap(
    wire: Lab, host: Node, server: socket.socket, tiny: Object
) -> None:
    with inside(host):
        index = socket.if_nametoindex("eth1")
        own, _ = start(tiny)
        mode = own.attach_xdp(tiny.program("drop"), index)
        before = maps.get_pinned(own.path / "links" / f"xdp-native-{index}")

        own.attach_xdp(tiny.program("count"), index)

        assert mode is links.Mode.NATIVE
        assert links.Link(before).program_id() == tiny.program("count").info().id
        assert own.links() == [f"xdp-native-{index}"]
    assert arrives(wire, server)


def test_another_mode_takes_the_place_of_the_first(host: Node, tiny: Object) -> None:
    with inside(host):
        index = socket.if_nametoindex("eth1")
        own, _ = start(tiny)
        own.attach_xdp(tiny.program("drop"), index)

        forced = own.attach_xdp(tiny.program("count"), index, links.Mode.GENERIC)
        kept = own.attach_xdp(tiny.program("count"), index)

        assert (forced, kept) == (links.Mode.GENERIC, links.Mode.GENERIC)
        assert own.links() == [f"xdp-generic-{index}"]


def test_interfaces_are_attached_apart_and_left_when_no_longer_wanted(
    host: Node, tiny: Object
) -> None:
    with inside(host):
        index = socket.if_nametoindex("eth1")
        own, _ = start(tiny)
        own.attach_xdp(tiny.program("count"), index)
        own.attach_xdp(tiny.program("count"), 1)
        way = own.attach_tc(tiny.program("mark"), index, links.Direction.EGRESS)
        all_of_them = own.links()

        own.keep_links([f"xdp-native-{index}"])

        assert all_of_them == [f"{way}-egress-{index}", "xdp-generic-1", f"xdp-native-{index}"]
        assert own.links() == [f"xdp-native-{index}"]


@pytest.mark.parametrize("way", ["tcx", "clsact"])
def test_tc_programs_are_replaced_and_detached(
    wire: Lab, host: Node, server: socket.socket, tiny: Object, way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "clsact":
        monkeypatch.setattr(links, "_TCX_INGRESS", 255)  # as a kernel that knows no such hook
    with inside(host):
        index = socket.if_nametoindex("eth1")
        own, _ = start(tiny)
        used = own.attach_tc(tiny.program("refuse"), index, links.Direction.INGRESS)
    dropped = is_lost(wire, server)
    with inside(host):
        Pins(OWNER).attach_tc(tiny.program("mark"), index, links.Direction.INGRESS)
    passed = arrives(wire, server)
    with inside(host):
        Pins(OWNER).attach_tc(tiny.program("refuse"), index, links.Direction.INGRESS)
        pins.detach(OWNER)

    if used != way:
        pytest.skip("this kernel has no tcx")
    assert dropped
    assert passed
    assert arrives(wire, server)


def test_maps_that_agree_are_used_on(host: Node, compiled: Callable[[str], Path]) -> None:
    first, second = Object(compiled(TINY)), Object(compiled(TINY))
    with inside(host):
        start(first, Kept("table"), Kept("counts"))
        first.map("table").update(1, (2, 3))

        _, reused = start(second, Kept("table"), Kept("counts"))

    assert reused == ["table", "counts"]
    assert second.map("table").id == first.map("table").id
    assert second.map("table").lookup(1) == (2, 3)


@pytest.mark.parametrize("size", [4000, 8000])
def test_entries_move_to_a_map_of_another_size(
    host: Node, compiled: Callable[[str], Path], size: int
) -> None:
    first, second, third = (Object(compiled(TINY)) for _ in range(3))
    second.set_max_entries("table", size)
    third.set_max_entries("table", size)
    entries = {number: (number, 5) for number in range(4000)}
    with inside(host):
        start(first, Kept("table"))
        first.map("table").update_all(entries.items())

        own, reused = start(second, Kept("table"))
        _, again = start(third, Kept("table"))

    assert (reused, again) == ([], ["table"])
    assert dict(third.map("table").items()) == entries
    assert [name.partition("-")[0] for name in os.listdir(own.path / "maps")] == ["table"]


def test_entries_that_come_while_programs_change_places_move_too(
    host: Node, compiled: Callable[[str], Path]
) -> None:
    first, second = Object(compiled(TINY)), Object(compiled(TINY))
    second.set_max_entries("table", 100)
    with inside(host):
        start(first, Kept("table"))
        old = first.map("table")
        old.update_all([(1, (1, 1)), (2, (2, 2))])

        own = Pins(OWNER)
        own.reuse_maps(second, [Kept("table")])
        second.load()
        own.fill_maps(second)
        old.update(3, (3, 3))
        new = second.map("table")
        new.update(2, (9, 9))
        own.settle()

    assert dict(new.items()) == {1: (1, 1), 2: (9, 9), 3: (3, 3)}


def test_a_smaller_map_takes_what_it_has_room_for(
    host: Node, compiled: Callable[[str], Path]
) -> None:
    first, second = Object(compiled(TINY)), Object(compiled(TINY))
    second.set_max_entries("table", 10)
    with inside(host):
        start(first, Kept("table"))
        first.map("table").update_all((number, (0, 0)) for number in range(100))

        start(second, Kept("table"))

    assert len(list(second.map("table").items())) == 10


@pytest.mark.parametrize("before, after", [
    ("__u32 left; __u16 right; __u16 padding;", "__u16 right; __u16 padding; __u32 left;"),
    ("__u32 left; __u16 right; __u16 padding;", "__u32 left; __u16 wrong; __u16 padding;"),
    ("MAP(table, BPF_MAP_TYPE_HASH, __u32,", "MAP(table, BPF_MAP_TYPE_HASH, __be32,"),
], ids=["another order", "another name", "another key"])
def test_a_changed_struct_of_the_same_size_begins_empty(
    host: Node, compiled: Callable[[str], Path], before: str, after: str
) -> None:
    assert before in TINY
    first, second, third = (Object(compiled(text)) for text in
                            (TINY, TINY.replace(before, after), TINY.replace(before, after)))
    with inside(host):
        own, _ = start(first, Kept("table"), Kept("slots"))
        first.map("table").update(1, (2, 3))
        first.map("slots").update(1, 7)
        names = os.listdir(own.path / "maps")

        _, reused = start(second, Kept("table"), Kept("slots"))
        _, again = start(third, Kept("table"), Kept("slots"))

    assert first.shape("table") == second.shape("table")
    assert (reused, again) == (["slots"], ["table", "slots"])
    assert list(second.map("table").items()) == []
    assert second.map("slots").lookup(1) == 7
    assert len(os.listdir(own.path / "maps")) == len(names) == 2


def test_what_entries_are_true_for_is_part_of_the_version(
    host: Node, compiled: Callable[[str], Path]
) -> None:
    first, second, third = (Object(compiled(TINY)) for _ in range(3))
    with inside(host):
        start(first, Kept("table", meaning="one"))
        first.map("table").update(1, (2, 3))

        _, reused = start(second, Kept("table", meaning="one"))
        _, other = start(third, Kept("table", meaning="two"))

    assert (reused, other) == (["table"], [])
    assert list(third.map("table").items()) == []


@pytest.mark.parametrize("places", [
    "FIRST, THIRD, SECOND, PLACES", "FIRST, NEW, SECOND, THIRD, PLACES", "THIRD, PLACES",
], ids=["another order", "one more", "fewer"])
def test_places_that_are_named_are_found_again_by_name(
    host: Node, compiled: Callable[[str], Path], places: str
) -> None:
    text = TINY.replace("FIRST, SECOND, THIRD, PLACES", places)
    first, second = Object(compiled(TINY)), Object(compiled(text))

    def copy(old: maps.Map, replace: bool) -> None:
        names = {each.name: each.value for each in second.btf.enum("place")}
        unpack = second.map("named").value.unpack
        for counter in (unpack(octets) for _, octets in old.items()):
            if replace and counter.name.decode().strip("\0") in names:
                second.map("named").update(names[counter.name.decode().strip("\0")], counter)

    with inside(host):
        start(first, Kept("named", keyed_by="place"))
        for place in list(first.btf.enum("place"))[:3]:
            first.map("named").update(place, (100 + place, place.name.encode()))

        _, reused = start(second, Kept("named", keyed_by="place", copy=copy))

    assert reused == []
    found = {place.name: second.map("named").lookup(place).packets
             for place in second.btf.enum("place") if place.name != "PLACES"}
    assert found == {name: {"FIRST": 100, "SECOND": 101, "THIRD": 102}.get(name, 0)
                     for name in places.split(", ")[:-1]}


def test_shapes_that_the_kernel_rounds_still_agree(
    host: Node, compiled: Callable[[str], Path]
) -> None:
    text = TINY.replace("MAP(table, BPF_MAP_TYPE_HASH,", "MAP(table, BPF_MAP_TYPE_LRU_HASH,")
    first, second = Object(compiled(text)), Object(compiled(text))
    for one in (first, second):
        one.set_map_flags("table", NO_COMMON_LRU)
        one.set_max_entries("table", 1001)
    with inside(host):
        start(first, Kept("table"))

        _, reused = start(second, Kept("table"))

    assert reused == ["table"]


def test_detach_leaves_nothing(
    wire: Lab, host: Node, server: socket.socket, tiny: Object
) -> None:
    with inside(host):
        own, _ = start(tiny, Kept("table"))
        own.attach_xdp(tiny.program("drop"), socket.if_nametoindex("eth1"))

        removed, again = pins.detach(OWNER), pins.detach(OWNER)

    assert (removed, again) == (True, False)
    assert not own.path.parent.exists()
    assert arrives(wire, server)


def test_pins_belong_to_one_network_namespace(wire: Lab, host: Node, tiny: Object) -> None:
    with inside(host):
        own, _ = start(tiny, Kept("table"))
    with inside(wire.node("client")):
        other = Pins(OWNER)

    assert own.path != other.path
    assert not other.path.exists()
    with inside(wire.node("client")):
        assert not pins.detach(OWNER)
    assert own.path.exists()


def test_what_a_namespace_that_has_gone_left_is_swept(tiny: Object) -> None:
    with Lab(backends=0) as lab, inside(lab.node("balancer")):
        own, _ = start(tiny, Kept("table"))
        own.attach_xdp(tiny.program("drop"), socket.if_nametoindex("eth1"))
        pins.sweep()
        there = own.path.exists()

    def is_swept() -> bool:  # the kernel takes a namespace down in its own time
        pins.sweep()
        return not own.path.exists()

    assert there
    wait_until(is_swept, 10, "its pins are removed")
    assert not own.path.parent.exists()


def test_pins_stay_where_they_are_found(host: Node, tiny: Object, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    with inside(host):
        own, _ = start(tiny, Kept("table"))
        elsewhere = own.path.parents[2]
        monkeypatch.setattr(pins, "_places", lambda: [tmp_path, elsewhere])

        again = Pins(OWNER)

    assert again.path == own.path


def test_a_private_mount_namespace_sees_the_same_pins(host: Node) -> None:
    code = "from common.bpf.pins import Pins; print(Pins('balancer-3').path)"

    seen = host.run(python(code)).strip()

    with inside(host):
        assert os.path.samefile(Path(seen).parent.parent.parent, pins.bpffs())
        assert Path(seen).parts[-3:] == Pins(OWNER).path.parts[-3:]


def test_what_is_kept_no_more_goes(host: Node, compiled: Callable[[str], Path]) -> None:
    first, second = (Object(compiled(TINY)) for _ in range(2))
    with inside(host):
        own, _ = start(first, Kept("table"), Kept("slots"))
        start(second, Kept("table"))
        names = own.map_paths()

    assert list(names) == ["table"]


def test_of_two_versions_our_own_is_used_on(host: Node, compiled: Callable[[str], Path]) -> None:
    """One is left over where a start ended just before it had removed it."""
    first, second = (Object(compiled(TINY)) for _ in range(2))
    with inside(host):
        own, _ = start(first, Kept("table"))
        first.map("table").update(1, (2, 3))
        for digest in ("0" * 16, "f" * 16):
            first.map("slots").pin(own.path / "maps" / f"table-{digest}")

        _, reused = start(second, Kept("table"))
        names = os.listdir(own.path / "maps")

    assert reused == ["table"]
    assert second.map("table").lookup(1).left == 2
    assert len(names) == 1
