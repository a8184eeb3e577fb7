"""What another configuration would change, in words, and what of it takes a restart."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from common.settings.emit import shown
from common.settings.schema import Entry, entries

RESTART = "takes a restart"
K = TypeVar("K")
T = TypeVar("T")


class Change(NamedTuple):
    """One of them. where: `service web, backend 2`; empty: at the top. key: empty for the whole.

    restart: whether it cannot be made while packets flow.
    """

    where: str
    key: str
    what: str
    restart: bool = False

    def __str__(self) -> str:
        name = ": ".join(part for part in (self.where, self.key) if part)
        return f"{name}{':' if self.key else ''} {self.what}{f' ({RESTART})' * self.restart}"


@dataclass(frozen=True)
class Plan:
    """All of them, in the order of the file."""

    changes: tuple[Change, ...] = ()

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __bool__(self) -> bool:
        return bool(self.changes)

    @property
    def lines(self) -> tuple[str, ...]:
        """One for each."""
        return tuple(map(str, self.changes))

    @property
    def restarts(self) -> tuple[Change, ...]:
        """Those that take a restart."""
        return tuple(change for change in self.changes if change.restart)

    def as_json(self) -> list[dict[str, object]]:
        """For programs."""
        return [change._asdict() for change in self.changes]


def compare(old: Any, new: Any, where: str = "", prefix: str = "") -> Iterator[Change]:
    """The settings in which two dataclasses of a shape differ; arrays of tables are left out.

    prefix: of the keys: a table's name.
    """
    for each in entries(type(new)):
        if isinstance(each, Entry):
            names = each.setting.fields or (each.name,)
            if any(getattr(old, name) != getattr(new, name) for name in names):
                what = f"{shown(each, old) or 'none'} → {shown(each, new) or 'none'}"
                yield Change(where, prefix + each.key, what, each.setting.restart)
        elif not each.is_array:
            yield from compare(getattr(old, each.name), getattr(new, each.name), where,
                               f"{prefix}{each.tables.key}.")


def members(
    old: Mapping[K, T], new: Mapping[K, T], *, changes: Callable[[T, T], Iterable[Change]],
    added: Callable[[T], Change], removed: Callable[[T], Change],
) -> Iterator[Change]:
    """What becomes of the tables of an array, by what each is known by: of the new ones in order,
    then of those that are gone.
    """
    for name, each in new.items():
        if name in old:
            yield from changes(old[name], each)
        else:
            yield added(each)
    yield from (removed(each) for name, each in old.items() if name not in new)


def drained(drain_ms: int) -> str:
    """How it goes on with what is configured no more."""
    return f"its flows go on for {drain_ms / 1000:g} s at most" if drain_ms else \
        "its flows are reset"
