"""eBPF from Python: maps, test runs, refusals, pins, attachments."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from common.bpf import BpfError, build, features, links, maps
from common.bpf.libbpf import possible_cpus
from common.bpf.objects import XDP_DROP, XDP_TX, Object, SkBuff, XdpMd
from lab.node import wait_until
from lab.topology import Lab
from tests.bpf.tiny import FRAME, TINY, arrives, is_lost
from tests.lab.netns import inside

Compiled = Callable[[str], Path]

WRONG = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int wild(struct xdp_md *context)
{
  return *(__u8 *)(long)context->data;
}
char _license[] SEC("license") = "GPL";
"""


# --- maps ---


def test_a_hash_is_read_and_written_by_its_layout(tiny: Object) -> None:
    with tiny.load():
        table = tiny.map("table")

    table.update(7, (1, 2))
    table.update(8, (3, 4))

    assert table.lookup(7) == (1, 2)
    assert table.lookup(9) is None
    assert sorted(table.keys()) == [7, 8]
    assert table.pop(7) == (1, 2)
    assert not table.delete(7)
    assert table.delete(8)
    assert list(table.items()) == []


def test_a_value_has_the_names_that_c_has(tiny: Object) -> None:
    with tiny.load():
        table = tiny.map("table")

    table.update(1, {"left": 70_000, "right": 5})

    found = table.lookup(1)
    assert (found.left, found.right) == (70_000, 5)
    assert found == table.value(right=5, left=70_000)


def test_a_layout_of_another_size_is_refused(tiny: Object) -> None:
    with tiny.load():
        table = tiny.map("table")

    with pytest.raises(ValueError, match="4 octets for 8"):
        maps.Map(os.dup(table.fd), table.key, table.key)


def test_flags_say_whether_a_key_may_be_there(tiny: Object) -> None:
    with tiny.load():
        table = tiny.map("table")
    table.update(1, (0, 0), maps.NOEXIST)

    with pytest.raises(BpfError) as raised:
        table.update(1, (0, 0), maps.NOEXIST)

    assert raised.value.errno == errno.EEXIST
    assert str(raised.value).startswith("writing into table: ")


@pytest.mark.kernels
@pytest.mark.parametrize("batch", [1, 64, 4096])
def test_many_entries_go_in_batches(tiny: Object, batch: int) -> None:
    with tiny.load():
        table = tiny.map("table")
    entries = {number: (number * 3, number % 7) for number in range(5000)}

    table.update_all(entries.items(), batch)

    assert dict(table.items(batch)) == entries
    for number in range(4999):
        table.delete(number)
    assert dict(table.items(batch)) == {4999: entries[4999]}


@pytest.mark.kernels
def test_every_kind_of_map_can_be_walked(tiny: Object) -> None:
    with tiny.load():
        slots = tiny.map("slots")
        trie = tiny.map("trie")
    entries = {(32, b"\x01\x02\x03\x04"): 1, (8, b"\x01\0\0\0"): 2}

    slots.update_all([(1, 11), (3, 33)])
    trie.update_all(entries.items())

    assert list(slots.items()) == [(0, 0), (1, 11), (2, 0), (3, 33)]
    assert dict(trie.items()) == entries
    assert trie.lookup((32, b"\x01\xff\xff\xff")) == 2


@pytest.mark.parametrize("name", ["counts", "seen"])
def test_a_map_per_cpu_has_a_value_for_each(tiny: Object, name: str) -> None:
    with tiny.load():
        counts = tiny.map(name)
    values = list(range(100, 100 + possible_cpus()))

    counts.update(1, values)
    counts.update_all([(0, values[::-1])])

    assert counts.lookup(1) == values
    assert dict(counts.items()) == {0: values[::-1], 1: values}


def test_a_map_has_the_size_that_was_set(tiny: Object) -> None:
    tiny.set_max_entries("table", 2)

    with tiny.load():
        table = tiny.map("table")

    assert table.shape == (maps.HASH, 4, 8, 2, 0)
    table.update_all([(1, (0, 0)), (2, (0, 0))])
    with pytest.raises(BpfError) as raised:
        table.update(3, (0, 0))
    assert raised.value.errno == errno.E2BIG


def test_maps_can_be_shared_between_objects(tiny: Object, compiled: Compiled) -> None:
    with tiny.load():
        table = tiny.map("table")
    second = Object(compiled(TINY))

    second.reuse("table", table)

    with second.load():
        second.map("table").update(5, (5, 5))
    assert table.lookup(5) == (5, 5)


# --- programs ---


@pytest.mark.kernels
def test_a_test_run_gives_verdict_octets_and_time(tiny: Object) -> None:
    tiny.set_variable("name", b"wire")

    with tiny.load():
        run = tiny.program("sign").test_run(FRAME, repeat=1000)

    assert run.retval == XDP_TX
    assert run.data == b"wire" + FRAME[4:]
    assert run.duration_ns < 100_000


def test_variables_are_set_before_load(tiny: Object) -> None:
    tiny.set_variable("verdict", XDP_DROP)

    with tiny.load():
        run = tiny.program("count").test_run(FRAME, XdpMd(data_end=len(FRAME)))

    assert run.retval == XDP_DROP


def test_a_variable_takes_its_own_size_only(tiny: Object) -> None:
    with pytest.raises(OverflowError):
        tiny.set_variable("verdict", 1 << 32)
    with pytest.raises(ValueError, match="3 octets for variable name of 4"):
        tiny.set_variable("name", b"abc")
    with pytest.raises(BpfError, match="finding variable nothing"):
        tiny.set_variable("nothing", 1)


@pytest.mark.kernels
def test_variables_are_shared_memory_after_load(tiny: Object) -> None:
    with tiny.load():
        section, offset, size = tiny.variable("packets")
        memory = tiny.map(section).map_memory()

        tiny.program("count").test_run(FRAME, repeat=10)

    assert (section, size) == (".bss", 8)
    assert int.from_bytes(memory[offset:offset + 8], "little") == 10


def test_a_test_run_takes_and_gives_back_the_context(tiny: Object) -> None:
    skb = SkBuff(mark=41)

    with tiny.load():
        run = tiny.program("mark").test_run(FRAME, skb)

    assert run.retval == -1
    assert skb.mark == 42


def test_a_frame_too_short_is_refused(tiny: Object) -> None:
    with tiny.load(), pytest.raises(BpfError, match="running count on 3 octets") as raised:
        tiny.program("count").test_run(b"abc")

    assert raised.value.errno == errno.EINVAL


def test_only_selected_programs_are_loaded(tiny: Object) -> None:
    tiny.select("drop")

    tiny.load()

    assert tiny.program("drop").test_run(FRAME).retval == XDP_DROP
    with pytest.raises(BpfError, match="using program count"):
        tiny.program("count")


def test_a_program_tells_its_size(tiny: Object) -> None:
    with tiny.load():
        info, other = tiny.program("drop").info(), tiny.program("count").info()

    assert info.verified_instructions == 2
    assert info.xlated_len == 16
    assert info.tag != other.tag


@pytest.mark.kernels
def test_a_ring_buffer_hands_over_records(tiny: Object) -> None:
    records: list[bytes] = []
    with tiny.load():
        ring = maps.RingBuffer(tiny.map("events"), records.append)

        tiny.program("count").test_run(FRAME, repeat=3)

        assert ring.poll(timeout_ms=1000) == 3
        ring.close()
    assert records == [(64).to_bytes(4, "little")] * 3


def test_what_a_record_s_handler_raises_is_raised(tiny: Object) -> None:
    def fail(record: bytes) -> None:
        raise LookupError(record)

    with tiny.load():
        ring = maps.RingBuffer(tiny.map("events"), fail)
        tiny.program("count").test_run(FRAME)

        with pytest.raises(LookupError):
            ring.consume()
        ring.close()


# --- building ---


@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.name)
def test_the_programs_compile_without_warnings(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-Werror"))

    made = build.compile(source, tmp_path / "made.bpf.o")

    assert made.exists()


def test_an_object_is_made_again_when_what_it_is_made_of_is_newer(tmp_path: Path) -> None:
    source, header = tmp_path / "tiny.bpf.c", tmp_path / "tiny.h"
    source.write_text(TINY)
    header.touch()
    made = build.compile(source)
    first_ns = made.stat().st_mtime_ns

    build.compile(source)
    unchanged_ns = made.stat().st_mtime_ns
    os.utime(header, ns=(first_ns + 1, first_ns + 1))
    build.compile(source)

    assert unchanged_ns == first_ns
    assert made.stat().st_mtime_ns > first_ns
    assert [path.name for path in tmp_path.glob("*.new")] == []


def test_what_the_compiler_refuses_is_said(tmp_path: Path) -> None:
    source = tmp_path / "wrong.bpf.c"
    source.write_text("int nonsense(void) { return missing; }")

    with pytest.raises(build.BuildError, match=r"wrong\.bpf\.c: (?s:.*)'missing'"):
        build.compile(source)

    assert list(tmp_path.iterdir()) == [source]


def test_without_a_compiler_the_build_goes_on_unless_it_must_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "tiny.bpf.c"
    source.write_text(TINY)
    monkeypatch.setattr(build, "sources", lambda: [source])
    monkeypatch.setenv("PATH", str(tmp_path))

    made = build.compile_all()

    assert made == []
    assert "warning: the fast engine is left out" in capsys.readouterr().err
    monkeypatch.setenv("L3DSR_FAST", "require")
    with pytest.raises(build.BuildError, match="there is no clang"):
        build.compile_all()


# --- refusals ---


@pytest.mark.kernels
def test_a_refusal_shows_the_end_of_the_verifier_s_log(compiled: Compiled) -> None:
    wrong = Object(compiled(WRONG))

    with pytest.raises(BpfError) as raised:
        wrong.load()

    assert raised.value.errno == errno.EACCES
    assert str(raised.value).startswith("loading tiny.bpf.o: Permission denied\n")
    assert "R1 invalid mem access 'scalar'" in str(raised.value) \
        or "invalid access to packet" in str(raised.value)
    assert len(raised.value.log) <= 30


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.o"
    path.write_bytes(b"nothing of the kind")

    with pytest.raises(BpfError, match=r"opening x\.o"):
        Object(path)
    with pytest.raises(BpfError, match="opening y"):
        Object(b"nothing of the kind", "y")


def test_names_that_are_not_there_are_refused(tiny: Object) -> None:
    with pytest.raises(BpfError, match=r"finding map nothing in tiny\.bpf\.o"):
        tiny.set_max_entries("nothing", 1)
    with pytest.raises(BpfError, match=r"finding program nothing in tiny\.bpf\.o"):
        tiny.select("nothing")


def test_the_kernel_s_functions_are_known() -> None:
    missing = features.missing_kfuncs("tcp_v4_rcv", "no_such_function")

    assert missing == ["no_such_function"]


# --- attachments ---


@pytest.mark.parametrize("mode", links.Mode)
def test_xdp_is_attached_replaced_and_detached(
    wire: Lab, server: socket.socket, tiny: Object, mode: links.Mode
) -> None:
    tiny.load()
    with inside(wire.node("balancer")):
        link, found = links.attach_xdp(
            tiny.program("drop"), socket.if_nametoindex("eth1"), mode)

    dropped = is_lost(wire, server)
    link.replace(tiny.program("count"))
    counted = arrives(wire, server)
    link.detach()

    assert found is mode
    assert dropped
    assert counted
    assert arrives(wire, server)


def test_xdp_takes_the_driver_where_it_can(wire: Lab, tiny: Object) -> None:
    tiny.load()
    with inside(wire.node("balancer")):
        index = socket.if_nametoindex("eth1")
        native, mode = links.attach_xdp(tiny.program("count"), index)
        loopback, fallback = links.attach_xdp(tiny.program("count"), 1)
        with pytest.raises(BpfError) as raised:
            links.attach_xdp(tiny.program("count"), index)

    assert mode is links.Mode.NATIVE
    assert fallback is links.Mode.GENERIC
    assert raised.value.errno == errno.EBUSY
    assert native.interface() == index
    assert native.program_id() == tiny.program("count").info().id
    native.close()
    loopback.close()


@pytest.mark.kernels
@pytest.mark.parametrize("direction", links.Direction)
def test_tc_is_attached_replaced_and_detached(
    wire: Lab, server: socket.socket, tiny: Object, direction: links.Direction
) -> None:
    tiny.load()
    host = wire.node("balancer" if direction is links.Direction.INGRESS else "client")
    with inside(host):
        index = socket.if_nametoindex("eth1")
        attached = links.attach_tc(tiny.program("refuse"), index, direction)

    dropped = is_lost(wire, server)
    with inside(host):
        attached.replace(tiny.program("mark"))
    passed = arrives(wire, server)
    with inside(host):
        attached.replace(tiny.program("refuse"))
        attached.detach()

    assert dropped
    assert passed
    assert arrives(wire, server)


def test_tcx_programs_run_before_those_that_were_there(
    wire: Lab, server: socket.socket, tiny: Object
) -> None:
    tiny.load()
    with inside(wire.node("balancer")):
        index = socket.if_nametoindex("eth1")
        first = links.attach_tc(tiny.program("accept"), index, links.Direction.INGRESS)
        if not isinstance(first, links.Link):
            pytest.skip("this kernel has no tcx")
        second = links.attach_tc(tiny.program("refuse"), index, links.Direction.INGRESS)

    assert is_lost(wire, server)
    second.detach()
    assert arrives(wire, server)
    first.detach()


def test_clsact_stands_in_for_tcx(wire: Lab, server: socket.socket, tiny: Object) -> None:
    tiny.load()
    with inside(wire.node("balancer")):
        index = socket.if_nametoindex("eth1")
        attached = links.TcFilter(index, links.Direction.INGRESS, handle=7)
        before = attached.program_id() > 0
        attached.replace(tiny.program("refuse"))
        there = links.TcFilter(index, links.Direction.INGRESS, handle=7).program_id() > 0
    dropped = is_lost(wire, server)
    with inside(wire.node("balancer")):
        attached.replace(tiny.program("mark"))
    passed = arrives(wire, server)
    with inside(wire.node("balancer")):
        links.TcFilter(index, links.Direction.INGRESS, handle=7).detach()
        after = attached.program_id() > 0
        attached.detach()

    assert (before, there, after) == (False, True, False)
    assert dropped
    assert passed


def test_frames_of_several_buffers_need_the_flag(compiled: Compiled) -> None:
    first, second = Object(compiled(TINY)), Object(compiled(TINY))
    second.set_frags("drop", True)
    first.load()
    second.load()

    with Lab(backends=0, mtu=9000) as lab, inside(lab.node("balancer")):
        index = socket.if_nametoindex("eth1")
        with pytest.raises(BpfError):
            links.attach_xdp(first.program("drop"), index, links.Mode.NATIVE)
        link, _ = links.attach_xdp(second.program("drop"), index, links.Mode.NATIVE)
        link.close()


def test_live_frames_are_sent(wire: Lab, tiny: Object) -> None:
    tiny.load()
    section, offset, _ = tiny.variable("packets")
    memory = tiny.map(section).map_memory()
    with inside(wire.node("switch")):
        port = socket.if_nametoindex("p-balancer")
        link, _ = links.attach_xdp(tiny.program("count"), port, links.Mode.NATIVE)
    with inside(wire.node("balancer")):
        index = socket.if_nametoindex("eth1")

        tiny.program("sign").run_live(FRAME, XdpMd(ingress_ifindex=index), repeat=1000)

    packets = memoryview(memory)[offset:offset + 8].cast("Q")
    wait_until(lambda: packets[0] >= 1000, 5, "they arrive")
    link.close()
