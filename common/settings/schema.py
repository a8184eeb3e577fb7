"""Settings declared once: where a dataclass has its field, with its type and its default.

    @dataclass(frozen=True, slots=True)
    class Timeouts:
        idle_ms: Annotated[int, Setting(seconds(1, 1e6), "an open flow")] = 900_000

From that come the key of the file (`idle`: the unit is left out), what it is read by, the
flag and its line in `--help`, and the row of its table in docs/operations.md. A table
within (`[timeouts]`, `[[service]]`) is a field as well, marked by `Tables`.

Reading makes a `Draft`: what is right, by field. What is wrong is noted in the table's
`faults` and missing in the draft, so that reading, and the checks that see more than one
value, go on and all faults are said at once. Only a draft without faults is `built`.
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field
from typing import Any, Generic, TypeVar

from common.settings.readers import Reader
from common.settings.table import Table

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is to say of a setting besides its field's name, type and default.

    help:    what it is, in --help and, as a sentence, in the documentation. more: further there.
    usage:   further in --help.
    key:     in the file, where that is not the field's name. fields: those that a pair fills.
    metavar: of its flag; without one it has none. repeated: the flag may be given again.
    flag_default: of the flag, where the file's key has none.
    lab:     what the flag is in the network of the Vagrantfile, if nothing is said.
    default: how the documentation shows one that is no constant. kind: as Reader.kind.
    restart: whether another value takes a restart; all else can change while packets flow.
    flag:    its flag, where that is not made of the key.
    """

    read: Reader[Any]
    help: str
    more: str = ""
    usage: str = ""
    key: str = ""
    fields: tuple[str, ...] = ()
    metavar: str = ""
    repeated: bool = False
    flag_default: Any = None
    lab: Any = None
    default: str = ""
    kind: str = ""
    restart: bool = False
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Tables:
    """A table within, `[key]`, or where the field is a tuple, an array of them, `[[key]]`.

    shape: what each is read as. help, metavar, lab: as a setting's.
    """

    key: str
    shape: type
    help: str = ""
    metavar: str = ""
    lab: Any = None
    repeated: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """A setting with its field."""

    name: str
    setting: Setting
    default: Any

    @property
    def key(self) -> str:
        """In the file."""
        return self.setting.key or self.name.removesuffix("_ms")

    @property
    def is_required(self) -> bool:
        """Whether the file has to say it."""
        return self.default is MISSING and not self.setting.default

    @property
    def shown_default(self) -> str:
        """As TOML has it; empty where there is none."""
        if self.default is MISSING or self.default is None or self.setting.default:
            return ""
        return self.setting.read.show(self.default)


@dataclass(frozen=True, slots=True)
class Within:
    """A table within, with its field."""

    name: str
    tables: Tables
    is_array: bool


def entries(shape: type) -> Iterator[Entry | Within]:
    """What a dataclass declares, in its order."""
    hints = typing.get_type_hints(shape, include_extras=True)
    for declared in dataclasses.fields(shape):
        for note in getattr(hints[declared.name], "__metadata__", ()):
            if isinstance(note, Setting):
                yield Entry(declared.name, note, declared.default)
            elif isinstance(note, Tables):
                is_array = typing.get_origin(hints[declared.name].__origin__) is tuple
                yield Within(declared.name, note, is_array)


def settings_of(shape: type) -> list[Entry]:
    """The settings alone."""
    return [entry for entry in entries(shape) if isinstance(entry, Entry)]


@dataclass
class Draft(Generic[T]):
    """A table as far as it is right.

    values:  by field; tables within are drafts. origins: the table that a value is from.
    """

    shape: type[T]
    table: Table
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, Table] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """The value of a field, None where it was wrong."""
        return self.values.get(name)

    def refuse(self, name: str, expected: str, value: object = None) -> None:
        """Note a fault of a field. value: as the file has it, where that is not as `str` has it."""
        entry = next((entry for entry in settings_of(self.shape) if entry.name == name), None)
        if value is None:
            value = self.get(name)
            value = value if isinstance(value, (int, str, type(None))) else str(value)
        table = self.origins.get(name, self.table)
        table.refuse(entry.key if entry else name, value, expected)

    @property
    def is_whole(self) -> bool:
        """Whether every field of the dataclass has a value."""
        return all(
            declared.name in self.values or declared.default is not MISSING
            or declared.default_factory is not MISSING
            for declared in dataclasses.fields(self.shape)  # type: ignore[arg-type]
        )

    def build(self) -> T:
        """The dataclass. Only where nothing is wrong."""
        built = {name: _built(value) for name, value in self.values.items()}
        return self.shape(**built)


def _built(value: Any) -> Any:
    if isinstance(value, Draft):
        return value.build()
    if isinstance(value, list):
        return tuple(_built(one) for one in value)
    return value


def read(shape: type[T], table: Table) -> Draft[T]:
    """Read a table as `shape` declares it; faults are noted in the table."""
    draft = Draft(shape, table)
    for entry in entries(shape):
        if isinstance(entry, Entry):
            _take(draft, entry, table)
        elif entry.is_array:
            draft.values[entry.name] = [
                read(entry.tables.shape, within) for within in table.tables(entry.tables.key)
            ]
        else:
            draft.values[entry.name] = read(entry.tables.shape, table.table(entry.tables.key))
    table.finish()
    return draft


def override(draft: Draft[Any], flags: Table) -> None:
    """Let flags count before what a file says."""
    for entry in settings_of(draft.shape):
        if entry.key in flags:
            _take(draft, entry, flags)
    flags.finish()


def _take(draft: Draft[Any], entry: Entry, table: Table) -> None:
    names = entry.setting.fields or (entry.name,)
    value = table.take(entry.key, entry.setting.read)
    for name in names:
        draft.values.pop(name, None)
    if value is not None:
        draft.values.update(zip(names, value if entry.setting.fields else (value,), strict=True))
        draft.origins.update(dict.fromkeys(names, table))
    elif entry.key in table:
        return  # it is wrong, and noted
    elif entry.is_required:
        table.refuse(entry.key, None, "a value: this key is required")
    elif entry.default is not MISSING:
        draft.values[entry.name] = entry.default
