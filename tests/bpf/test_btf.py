"""What Python knows of C's types, by an object's BTF."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.bpf import BpfError, build
from common.bpf.btf import Btf, BtfError
from common.bpf.objects import Object

Compiled = Callable[[str], Path]

TYPES = """
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include "common/bpf/include/share.h"

enum colour { RED, GREEN = 7, BLUE };
struct ends { __be32 address; __be16 port; __u16 padding; };
struct inner { __u8 first; __s16 second; };
union word { struct { __u8 low; __u8 high; __u16 top; }; __u32 whole; };
struct everything {
	struct ends ends;
	__u64 wide;
	bool yes;
	__u8 octets[3];
	__s32 below;
	enum colour colour;
	struct inner pair[2];
	union word tag;
	__u16 grid[2][3];
	struct { __u8 hidden; };
	void *pointer;
	__u8 padding2[5];
};
struct bits { __u32 few : 3; };

struct { __uint(type, BPF_MAP_TYPE_HASH); __type(key, struct ends); __type(value, enum colour);
         __uint(max_entries, 5); } painted SEC(".maps");
SHARE_TYPE(everything, struct everything);
SHARE_TYPE(bits, struct bits);
const volatile __u32 limit = 3;

SEC("syscall") int copy(struct everything *given)
{
	if (given->ends.port != 0x5000 || given->pair[1].second != -2 || given->tag.high != 9)
		return 0;
	if (given->grid[1][2] != 6 || given->hidden != 77)
		return 0;
	given->wide += given->colour;
	return 1;
}
char LICENSE[] SEC("license") = "GPL";
"""
# A constant table, which clang keeps elsewhere than it says.
REFUSED = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
const volatile __u32 limit;
SEC("tc") int look_up(struct __sk_buff *skb)
{
	static const __u16 table[] = {1, 10, 100, 1000, 10000, 3, 33, 333};

	return table[skb->mark & 7];
}
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def types(compiled: Compiled) -> Btf:
    return Object(compiled(TYPES)).btf


@pytest.mark.kernels
@pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.name)
def test_the_kernel_takes_the_types_of_every_program(source: Path) -> None:
    with Object(build.compile(source)) as program_file:
        program_file.btf.map_types("reasons")
        if source.name == "adopt.bpf.c":
            _load_or_skip(program_file)
        else:
            program_file.load()


def _load_or_skip(program_file: Object) -> None:
    from packetbridge.offload import adopt

    if reason := adopt.refusal_of_kernel():
        pytest.skip(reason)
    program_file.load()


@pytest.mark.kernels
def test_an_object_whose_types_the_kernel_refuses_is_refused(compiled: Compiled) -> None:
    program_file = Object(compiled(REFUSED))

    with pytest.raises(BpfError, match=r"loading the types of tiny\.bpf\.o: Invalid") as raised:
        program_file.load()

    assert "Error loading .BTF into kernel" in str(raised.value)


def test_an_object_without_types_says_so(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", [flag for flag in build.FLAGS if flag != "-g"])

    with pytest.raises(BpfError, match=r"opening tiny\.bpf\.o") as raised:  # maps need them
        Object(compiled(TYPES + "/* without */"))

    assert "BTF" in str(raised.value)


def test_a_struct_is_packed_as_c_reads_it(compiled: Compiled, types: Btf) -> None:
    import ctypes

    layout = types.layout("everything")
    given = layout(
        ends=(b"\x0a\0\0\1", b"\0P"), wide=1 << 40, yes=True, octets=b"abc", below=-5,
        colour=7, pair=((1, 2), (3, -2)), tag=(8, 9, 1000), grid=((1, 2, 3), (4, 5, 6)), hidden=77,
    )

    with Object(compiled(TYPES)).load() as program_file:
        room = ctypes.create_string_buffer(layout.pack(given), layout.size)
        assert program_file.program("copy").call(room) == 1

    found = layout.unpack(room.raw)
    assert found == given._replace(wide=given.wide + 7)
    assert (found.ends.port, found.pair[1].second, found.tag.top) == (b"\0P", -2, 1000)
    assert (found.octets, found.yes, found.pointer) == (b"abc", True, 0)


def test_what_is_not_named_is_zero_and_a_wrong_name_is_refused(types: Btf) -> None:
    layout = types.layout("everything")

    assert layout.pack(layout()) == bytes(layout.size)
    with pytest.raises(TypeError, match="everything has no field width"):
        layout(width=1)
    with pytest.raises(BtfError, match=r"everything has no field tag\.middle"):
        layout.offset("tag.middle")
    with pytest.raises(BtfError, match="no type nothing"):
        types.layout("nothing")


def test_a_struct_or_an_array_may_be_given_as_its_octets(types: Btf) -> None:
    layout = types.layout("everything")
    octets = layout.pack(layout(ends=b"\x0a\0\0\1\0P\0\0", grid=struct.pack("=6H", *range(6))))

    found = layout.unpack(octets)

    assert found.ends == (b"\x0a\0\0\1", b"\0P")
    assert found.grid == ((0, 1, 2), (3, 4, 5))
    assert layout.pack(octets) == octets
    with pytest.raises(ValueError, match="3 octets for ends of 8"):
        layout.pack(layout(ends=b"abc"))


def test_a_row_has_the_fields_asked_for_in_their_order(types: Btf) -> None:
    layout = types.layout("everything")
    row = layout.row("tag.high", "below", "ends", "wide")

    octets = row.pack(9, -1, b"\x0a\0\0\1\0P\0\0", 3)

    assert row.unpack(octets) == (9, -1, b"\x0a\0\0\1\0P\0\0", 3)
    assert layout.unpack(octets) == layout(
        tag=(0, 9, 0), below=-1, ends=(b"\x0a\0\0\1", b"\0P"), wide=3)
    assert octets[layout.offset("tag.high")] == 9
    assert layout.row("wide").unpack(octets) == (3,)
    port, = types.layout("ends").row("port", as_numbers=True).unpack(b"\x0a\0\0\1\0P\0\0")
    assert port == int.from_bytes(b"\0P", sys.byteorder)


def test_enumerators_have_their_names_and_numbers(types: Btf) -> None:
    assert [(each.name, each.value) for each in types.enum("colour")] == [
        ("RED", 0), ("GREEN", 7), ("BLUE", 8)]


def test_bit_fields_are_refused(types: Btf) -> None:
    with pytest.raises(BtfError, match=r"a bit-field: bits\.few"):
        types.layout("bits")


def test_variables_are_found_by_section(types: Btf) -> None:
    section, _, size = types.variables["limit"]

    assert (section, size) == (".rodata", 4)
    assert "painted" not in types.variables


@pytest.mark.parametrize("before, after", [
    ("__be32 address; __be16 port; __u16 padding;", "__be16 port; __u16 padding; __be32 address;"),
    ("__be32 address;", "__u32 address;"),
    ("__be16 port; __u16 padding;", "__be16 port; __u16 weight;"),
], ids=["another order", "another byte order", "another name"])
def test_a_changed_key_of_the_same_size_has_another_digest(
    compiled: Compiled, types: Btf, before: str, after: str
) -> None:
    other = Object(compiled(TYPES.replace(before, after))).btf

    assert types.digest_of_map("painted")[0] != other.digest_of_map("painted")[0]
    assert types.digest_of_map("painted")[1] == other.digest_of_map("painted")[1]


def test_another_enumerator_has_another_digest(compiled: Compiled, types: Btf) -> None:
    other = Object(compiled(TYPES.replace("GREEN = 7", "YELLOW = 7"))).btf

    assert types.digest_of_map("painted")[0] == other.digest_of_map("painted")[0]
    assert types.digest_of_map("painted")[1] != other.digest_of_map("painted")[1]


def test_what_means_the_same_has_the_same_digest(compiled: Compiled, types: Btf) -> None:
    renamed = TYPES.replace("struct ends", "struct endpoint").replace("enum colour", "enum paint")
    other = Object(compiled(renamed)).btf

    assert types.digest_of_map("painted") == other.digest_of_map("painted")


def test_variables_of_a_section_have_a_digest_together(compiled: Compiled, types: Btf) -> None:
    other = Object(compiled(TYPES.replace("__u32 limit", "__u64 limit"))).btf

    assert types.digest_of_map(".rodata") != other.digest_of_map(".rodata")


@pytest.mark.parametrize("octets", [b"", b"nothing of the kind", bytes(40)])
def test_octets_that_are_no_types_are_refused(octets: bytes) -> None:
    with pytest.raises(BtfError, match="there is no BTF"):
        Btf(octets)
