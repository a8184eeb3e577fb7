"""What tests have one after the other is as if each had loaded it: tests/bpf/loaded.py."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from common.bpf import build, features
from common.bpf.libbpf import possible_cpus
from common.bpf.maps import LPM_TRIE, PERCPU_ARRAY, PERCPU_HASH, RINGBUF, Map, RingBuffer
from common.bpf.objects import XDP_DROP, XDP_PASS, Object
from packetbridge.offload.adopt import KFUNC
from tests.bpf import loaded
from tests.bpf.loaded import Shared
from tests.bpf.tiny import FRAME, TINY

MOST = 300  # entries of a map
FILES = [("balancer", "balancer"), ("packetbridge", "splice"), ("packetbridge", "adopt")]


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What is kept, by these tests alone."""
    own: list[Any] = []
    monkeypatch.setattr(loaded, "_kept", own)
    yield own
    for each in own:
        each.close()


@pytest.fixture
def tiny_file(compiled: Callable[[str], Path]) -> Path:
    return compiled(TINY)


def maps(of: Object) -> Iterator[tuple[str, Map]]:
    """Those of a loaded object, of octets, but for rings."""
    for name in loaded.map_names(of):
        with closing(of.map(name)) as found:
            if found.shape.type != RINGBUF:
                yield name, Map(found.fd)


def held(of: Object) -> dict[str, list[Any]]:
    """All that there is in the maps."""
    return {name: sorted(found.items()) for name, found in maps(of)}


def spoil(of: Object) -> None:
    """Write to all places of each map."""
    for name, found in maps(of):
        if name.endswith(".rodata"):
            continue
        shape, value = found.shape, b"\xa5" * found.shape.value_size
        is_per_cpu = shape.type in (PERCPU_ARRAY, PERCPU_HASH)
        found.update_all((key_of(found, number), [value] * possible_cpus() if is_per_cpu else value)
                         for number in range(min(shape.max_entries, MOST)))


def key_of(found: Map, number: int) -> bytes:
    if found.shape.type == LPM_TRIE:
        return (32).to_bytes(4, "little") + number.to_bytes(4)
    return number.to_bytes(found.shape.key_size, "little")


def numbers(of: Object) -> list[int]:
    """The kernel's, of the programs."""
    return [of.program(name).info().id for name in of.program_names()]


def maps_alone(kind: type[Object], file: Path) -> Object:
    """Loaded without programs, and with small maps: it is about what they hold."""
    made = kind(file)
    made.select()
    for name in loaded.map_names(made):
        shape = made.shape(name)
        if shape.type != RINGBUF and shape.max_entries > MOST:
            made.set_max_entries(name, MOST)
    return made.load()


def assert_begins_anew(file: Path) -> None:
    with maps_alone(Object, file) as new:
        expected = held(new)

    first = maps_alone(Shared, file)
    numbered = [found.id for _, found in maps(first)]
    assert held(first) == expected
    spoil(first)
    spoiled = held(first)
    first.close()
    second = maps_alone(Shared, file)
    found = held(second)
    again = [found.id for _, found in maps(second)]
    second.close()

    assert [name for name in expected if spoiled[name] == expected[name]] == [
        name for name in expected if name.endswith(".rodata")]
    assert again == numbered
    assert found == expected


def test_maps_of_every_kind_begin_anew(tiny_file: Path) -> None:
    assert_begins_anew(tiny_file)


@pytest.mark.parametrize("package, name", FILES, ids=[name for _, name in FILES])
def test_the_products_maps_begin_anew(package: str, name: str) -> None:
    if name == "adopt" and features.missing_kfuncs(KFUNC):
        pytest.skip(f"needs {KFUNC}")

    assert_begins_anew(build.object_of(package, name))


def test_what_a_program_has_written_is_not_there_for_the_next(tiny_file: Path) -> None:
    for _ in range(2):
        with Shared(tiny_file).load() as tiny:
            records: list[bytes] = []
            with closing(tiny.map("events")) as events, \
                    closing(RingBuffer(events, records.append)) as ring:
                assert ring.consume() == 0
                assert bytes(tiny.shared_variable("packets")) == bytes(8)

                tiny.program("count").test_run(FRAME, repeat=3)

                assert bytes(tiny.shared_variable("packets")) == b"\3" + bytes(7)


def test_other_constants_are_another_program(tiny_file: Path) -> None:
    verdicts = []
    for verdict in (XDP_PASS, XDP_DROP, XDP_PASS):
        with Shared(tiny_file) as tiny:
            tiny.set_variable("verdict", verdict)
            tiny.load()
            verdicts.append(tiny.program("count").test_run(FRAME).retval)

    assert verdicts == [XDP_PASS, XDP_DROP, XDP_PASS]


def test_other_sizes_and_another_choice_of_programs_are_others(tiny_file: Path) -> None:
    sized, chosen = Shared(tiny_file), Shared(tiny_file)
    Shared(tiny_file).load().close()
    sized.set_max_entries("table", 7)
    chosen.select("drop")

    with sized.load(), chosen.load():
        assert sized.shape("table").max_entries == 7
        assert len({sized.program("drop").info().id, chosen.program("drop").info().id}) == 2


def test_what_is_in_use_is_nobody_elses(tiny_file: Path) -> None:
    with Shared(tiny_file).load() as first, Shared(tiny_file).load() as second:
        assert not set(numbers(first)) & set(numbers(second))


def test_what_has_another_ones_maps_is_for_those_alone(tiny_file: Path) -> None:
    def joined(other: Object) -> tuple[int, list[int]]:
        with Shared(tiny_file) as made:
            made.join(other, own=["events"])
            made.load()
            with closing(made.map("slots")) as slots:
                return slots.id, numbers(made)

    with Shared(tiny_file).load() as first, Shared(tiny_file).load() as second:
        of_first, of_second, again = joined(first), joined(second), joined(first)

        with closing(first.map("slots")) as slots:
            assert of_first[0] == slots.id
        assert of_second != of_first
        assert again == of_first


def test_only_so_many_are_kept(tiny_file: Path, kept: list[Any]) -> None:
    for size in range(1, loaded.MOST + 2):
        with Shared(tiny_file) as tiny:
            tiny.set_max_entries("table", size)
            tiny.load()

    assert len(kept) == loaded.MOST
