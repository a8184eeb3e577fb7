"""The types of an object file, as its BTF tells them: layouts, enumerators, digests.

C alone says how a struct lies in memory; Python asks here, by name:

    btf = program_file.btf
    flow = btf.layout("flow")
    flow.pack(flow(client_isn=7))                 # what is not named is zero
    flow.unpack(octets).client_isn
    flow.row("ends", "tag.backend").unpack(octets)  # a bare tuple, for paths in a hurry
    Reason = btf.enum("reason")                   # an IntEnum

A type as Python has it: integers and enums are int, bool is bool, pointers are int. __be16, __be32,
__be64 and arrays of octets are bytes, as they lie in memory; other arrays are tuples; structs are
named tuples, in which the fields of anonymous members are the struct's own, as in C. Of a union the
first member counts. Fields called `padding` are left out, and zero. A struct may also be given as a
dict, a struct or an array also as its octets. Bit-fields are refused.

Clang tells the types that maps, variables and global functions have. SHARE_TYPE in
common/bpf/include/share.h names others.

Source: Documentation/bpf/btf.rst of the kernel
"""

import hashlib
import struct
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

_HEADER = struct.Struct("=HBBIIIII")
_MAGIC = 0xEB9F
(_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC,
 _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64) = range(1, 20)
# What follows a type's three words: so many words of its own, and so many for each member.
_WORDS = {_INT: (1, 0), _ARRAY: (3, 0), _STRUCT: (0, 3), _UNION: (0, 3), _ENUM: (0, 2),
          _FUNC_PROTO: (0, 2), _VAR: (1, 0), _DATASEC: (0, 3), _DECL_TAG: (1, 0), _ENUM64: (0, 3)}
_MEANS_ANOTHER = {_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG, _VAR}
_SIGNED, _BOOL = 1, 4
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_WIRE = {"__be16", "__be32", "__be64"}
_UNNAMED = ("padding",)


class BtfError(Exception):
    """The types are not there, or cannot be read; str() says which and why."""


class _Type(NamedTuple):
    """A type as it stands in the section. size: or the number of the type that it refers to."""

    name: str
    kind: int
    flag: bool
    size: int
    words: tuple[int, ...]

    def members(self, words: int = 3) -> Iterator[tuple[int, ...]]:
        """What follows it, for each member."""
        return (self.words[at:at + words] for at in range(0, len(self.words), words))


class _Member(NamedTuple):
    name: str
    number: int
    offset: int  # octets


class Btf:
    """The types of one object."""

    def __init__(self, octets: bytes) -> None:
        """octets: of the section .BTF. Raises: BtfError."""
        if len(octets) < _HEADER.size or octets[:2] != struct.pack("=H", _MAGIC):
            raise BtfError("there is no BTF")
        _, _, _, header_len, type_off, type_len, text_off, text_len = _HEADER.unpack_from(octets)
        text_off += header_len
        self._text = octets[text_off:text_off + text_len]
        type_off += header_len
        self._types = [_Type("void", 0, False, 0, ()), *self._read(octets, type_off,
                                                                    type_off + type_len)]
        self._by_name: dict[tuple[str, int], int] = {}
        for number, each in enumerate(self._types):
            self._by_name.setdefault((each.name, each.kind), number)
        self._layouts: dict[int, Layout] = {}

    def layout(self, name: str) -> "Layout":
        """Of a struct or union, by its name. Raises: BtfError."""
        return self.layout_of(self._named(name, _STRUCT, _UNION))

    def layout_of(self, number: int) -> "Layout":
        """Of a type, by its number. Raises: BtfError."""
        if number not in self._layouts:
            self._layouts[number] = Layout(self, number)
        return self._layouts[number]

    def enum(self, name: str) -> type[IntEnum]:
        """Its enumerators, by their names in C. Raises: BtfError."""
        number = self._named(name, _ENUM)
        return IntEnum(name, dict(self._enumerators(self._types[number])))  # type: ignore[return-value]

    def map_types(self, name: str) -> tuple[int, int]:
        """The numbers of the types of a map's keys and values; 0 where it names none."""
        for label, number, _, _ in self._variables(".maps"):
            if label == name:
                fields = {each.name: each.number for each in self.members(number)}
                return (self._pointee(fields.get("key", 0)), self._pointee(fields.get("value", 0)))
        return 0, 0

    def digest_of_map(
        self, name: str, keyed_by: str = "", beside: Iterable[str] = ()
    ) -> tuple[str, str]:
        """What its keys and its values are, in 8 hex digits each: equal where they mean the same.

        name: also of a section of variables (`.bss`), whose value they are together.
        keyed_by: the enum that an array's places are named by; arrays must have keys of plain
                  integers, so their own type does not say it.
        beside: structs at places of their own, which are other than its values.
        """
        names = self._describe(self._named(keyed_by, _ENUM)) if keyed_by else ""
        names += "".join(self._describe(self._named(each, _STRUCT)) for each in beside)
        if name.startswith("."):
            value = ",".join(f"{offset}:{label}:{self._describe(number)}"
                             for label, number, offset, _ in self._variables(name))
            return _digest(names), _digest(value)
        key, value_number = self.map_types(name)
        return _digest(self._describe(key) + names), _digest(self._describe(value_number))

    @cached_property
    def variables(self) -> dict[str, tuple[str, int, int]]:
        """Global variables by name: section, offset in it, size; in octets."""
        return {label: (each.name, offset, size)
                for each in self._types if each.kind == _DATASEC and each.name != ".maps"
                for label, _, offset, size in self._variables(each.name)}

    # --- for layouts ---

    def resolve(self, number: int) -> tuple[_Type, int, bool]:
        """What a type is without qualifiers and other names, and whether it is in network order."""
        is_wire = False
        while self._types[number].kind in _MEANS_ANOTHER:
            is_wire |= self._types[number].name in _WIRE
            number = self._types[number].size
        return self._types[number], number, is_wire

    def size_of(self, number: int) -> int:
        """In octets. Raises: BtfError."""
        found, _, _ = self.resolve(number)
        if found.kind == _ARRAY:
            return found.words[2] * self.size_of(found.words[0])
        if found.kind == _PTR:
            return 8
        if found.kind in (_INT, _STRUCT, _UNION, _ENUM, _FLOAT):
            return found.size
        raise BtfError(f"a type without a size: {found.name or number}")

    def members(self, number: int) -> Iterator[_Member]:
        """The fields of a struct or union; of anonymous members, theirs. Raises: BtfError."""
        found, _, _ = self.resolve(number)
        if found.kind not in (_STRUCT, _UNION):
            raise BtfError(f"{found.name or number} has no fields")
        for name_off, kind, place in found.members():
            bits, offset = (place >> 24, place & 0xFFFFFF) if found.flag else (0, place)
            if bits or offset % 8:
                raise BtfError(f"a bit-field: {found.name}.{self._word(name_off)}")
            if name_off:
                yield _Member(self._word(name_off), kind, offset // 8)
            else:
                yield from (each._replace(offset=each.offset + offset // 8)
                            for each in self.members(kind))
            if found.kind == _UNION:
                return

    # --- inside ---

    def _read(self, octets: bytes, place: int, end: int) -> Iterator[_Type]:
        while place < end:
            name_off, info, size = struct.unpack_from("=III", octets, place)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if not 0 < kind <= _ENUM64:
                raise BtfError(f"a type of an unknown kind, {kind}")
            own, each = _WORDS.get(kind, (0, 0))
            words = struct.unpack_from(f"={own + each * count}I", octets, place + 12)
            place += 12 + 4 * len(words)
            yield _Type(self._word(name_off), kind, bool(info >> 31), size, words)

    def _word(self, offset: int) -> str:
        return self._text[offset:self._text.index(b"\0", offset)].decode()

    def _named(self, name: str, *kinds: int) -> int:
        for kind in kinds:
            if (name, kind) in self._by_name:
                return self._by_name[name, kind]
        raise BtfError(f"no type {name}")

    def _pointee(self, number: int) -> int:
        found, _, _ = self.resolve(number)
        return found.size if found.kind == _PTR else 0

    def _variables(self, section: str) -> Iterator[tuple[str, int, int, int]]:
        """Name, type, offset and size of each."""
        number = self._by_name.get((section, _DATASEC))
        for variable, offset, size in self._types[number].members() if number else ():
            found = self._types[variable]
            if found.kind == _VAR:  # else a function of the kernel, in .ksyms
                yield found.name, found.size, offset, size

    def _enumerators(self, found: _Type) -> Iterator[tuple[str, int]]:
        for name_off, value in found.members(2):
            yield self._word(name_off), value

    def _describe(self, number: int) -> str:
        """All that two programs must agree in that use a value of the type."""
        found, number, is_wire = self.resolve(number)
        if found.kind == _ARRAY:
            return f"{self._describe(found.words[0])}[{found.words[2]}]"
        if found.kind in (_STRUCT, _UNION):
            fields = [f"{place}:{self._word(name)}:{self._describe(kind)}"
                      for name, kind, place in found.members()]
            return f"{'union' if found.kind == _UNION else 'struct'}{found.size}{{{fields}}}"
        if found.kind == _ENUM:
            return f"enum{found.size}{dict(self._enumerators(found))}"
        if found.kind == _INT:
            return f"{'be' if is_wire else 'int'}{found.size}:{found.words[0] >> 24}"
        return f"{found.kind}:{found.name}"


class Layout:
    """How values of a type lie in memory. size: in octets."""

    def __init__(self, btf: Btf, number: int) -> None:
        """Raises: BtfError where the type has what has no layout here."""
        self._btf = btf
        self._number = number
        found, number, is_wire = btf.resolve(number)
        self.name = found.name
        self.size = btf.size_of(number)
        # Either one field of struct's, or parts that are layouts themselves.
        self._parts: list[Layout] = []
        self._make: Callable[[Iterable[Any]], Any] = tuple
        self._defaults: dict[str, Any] = {}
        self._format: str
        if found.kind == _ARRAY and not self._octets_code(found):
            self._parts = [btf.layout_of(found.words[0])] * found.words[2]
            self._format = "".join(part._format for part in self._parts)
        elif found.kind in (_STRUCT, _UNION):
            self._format = self._read_struct()
        else:
            self._format = self._octets_code(found) or self._code(found, is_wire)
        self._struct = struct.Struct("=" + self._format)
        self._is_flat = not any(part._parts for part in self._parts)

    def __call__(self, **fields: Any) -> Any:
        """A struct's value; what is not named is zero. Raises: TypeError."""
        unknown = fields.keys() - self._defaults.keys()
        if unknown or not self._defaults:
            raise TypeError(f"{self.name} has no field {', '.join(sorted(unknown))}")
        return self._make({**self._defaults, **fields}.values())

    def pack(self, value: Any) -> bytes:
        """Octets of a value, or of its octets themselves. Raises: ValueError, struct.error."""
        if isinstance(value, bytes):
            if len(value) != self.size:
                raise ValueError(f"{len(value)} octets for {self.name or 'a value'} of {self.size}")
            return value
        if not self._parts:
            return self._struct.pack(value)
        if isinstance(value, dict):
            value = self(**value)
        return self._struct.pack(*(value if self._is_flat else self._leaves(value)))

    def unpack(self, octets: bytes) -> Any:
        """The value that octets are. Raises: struct.error."""
        found = self._struct.unpack(octets)
        if not self._parts:
            return found[0]
        return self._make(found) if self._is_flat else self._grown(iter(found))

    def offset(self, path: str) -> int:
        """Where a field lies; of a struct in it: `tag.backend`. Raises: BtfError."""
        return self._find(path)[0]

    def row(self, *paths: str, as_numbers: bool = False) -> "Row":
        """Some fields, in this order, as a bare tuple; structs among them as their octets.

        as_numbers: 1, 2, 4 or 8 octets as the number that C computes with, in the host's order.
        Raises: BtfError.
        """
        return Row(self.size, [self._find(path) for path in paths], as_numbers)

    # --- inside ---

    @property
    def is_field(self) -> bool:
        """Whether a value is one field, and not made of others."""
        return not self._parts

    def _find(self, path: str) -> tuple[int, "Layout"]:
        found, offset = self, 0
        for name in path.split("."):
            for each in self._btf.members(found._number):
                if each.name == name:
                    found, offset = self._btf.layout_of(each.number), offset + each.offset
                    break
            else:
                raise BtfError(f"{self.name} has no field {path}")
        return offset, found

    def _octets_code(self, found: _Type) -> str:
        """An array's code, if it is one of octets."""
        if found.kind != _ARRAY:
            return ""
        element, _, _ = self._btf.resolve(found.words[0])
        is_octets = element.kind == _INT and element.size == 1
        return f"{found.words[2]}s" if is_octets else ""

    def _read_struct(self) -> str:
        names, end, format_ = [], 0, ""
        for each in self._btf.members(self._number):
            if each.name.startswith(_UNNAMED):
                continue
            part = self._btf.layout_of(each.number)
            format_ += "x" * (each.offset - end) + part._format
            end = each.offset + part.size
            names.append(each.name)
            self._parts.append(part)
        self._defaults = dict(zip(names, (part._zero() for part in self._parts), strict=True))
        make_class: Any = namedtuple  # mypy wants the names here and now
        self._make = make_class(self.name or "anonymous", names)._make
        return format_ + "x" * (self.size - end)

    @staticmethod
    def _code(found: _Type, is_wire: bool) -> str:
        if is_wire:
            return f"{found.size}s"
        if found.kind == _PTR:
            return "Q"
        code = _CODES.get(found.size)
        if found.kind == _ENUM and code:
            return code
        if found.kind == _INT and code:
            encoding = found.words[0] >> 24
            return "?" if encoding & _BOOL else code.lower() if encoding & _SIGNED else code
        raise BtfError(f"a type that has no layout here: {found.name}")

    def _zero(self) -> Any:
        return self.unpack(bytes(self.size))

    def _leaves(self, value: Any) -> Sequence[Any]:
        if not self._parts:
            return (value,)
        if isinstance(value, bytes):
            return self._struct.unpack(self.pack(value))
        if isinstance(value, dict):
            value = self(**value)
        return [leaf for part, own in zip(self._parts, value, strict=True)
                for leaf in part._leaves(own)]

    def _grown(self, leaves: Iterator[Any]) -> Any:
        if not self._parts:
            return next(leaves)
        return self._make([part._grown(leaves) for part in self._parts])


class Row:
    """Some fields of a struct: `pack(*values)` and `unpack(octets)`, as fast as struct's."""

    def __init__(
        self, size: int, fields: Sequence[tuple[int, Layout]], as_numbers: bool = False
    ) -> None:
        """fields: where each lies, and what it is."""
        order = sorted(range(len(fields)), key=lambda index: fields[index][0])
        format_, end = "=", 0
        for offset, part in (fields[index] for index in order):
            code = part._format if part.is_field else f"{part.size}s"
            if as_numbers and code.endswith("s"):
                code = _CODES.get(part.size, code)
            format_ += "x" * (offset - end) + code
            end = offset + part.size
        made = struct.Struct(format_ + "x" * (size - end))
        self.pack: Callable[..., bytes] = made.pack
        self.unpack: Callable[[bytes], tuple[Any, ...]] = made.unpack
        if order != sorted(order):
            places = itemgetter(*order)
            back = itemgetter(*sorted(range(len(order)), key=order.__getitem__))
            self.pack = lambda *values: made.pack(*places(values))
            self.unpack = lambda octets: back(made.unpack(octets))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
