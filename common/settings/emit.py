"""A configuration as the TOML that says it: what `schema.read` makes the same of."""

from collections.abc import Iterator
from typing import Any

from common.settings.schema import Entry, entries


def emit(made: Any) -> str:
    """The text of a dataclass that declares settings. Defaults that are constants are left out."""
    return "".join(f"{line}\n" for line in _lines(made, ""))


def shown(entry: Entry, made: Any) -> str:
    """A setting's value in TOML; empty where it has none."""
    values = tuple(getattr(made, name) for name in entry.setting.fields or (entry.name,))
    value = values if entry.setting.fields else values[0]
    return "" if value is None or value == "" else entry.setting.read.show(value)


def _lines(made: Any, prefix: str) -> Iterator[str]:
    """prefix: of the names of tables within."""
    declared = list(entries(type(made)))
    for each in declared:
        if isinstance(each, Entry):
            text = shown(each, made)
            if text and (each.setting.default or getattr(made, each.name) != each.default):
                yield f"{each.key} = {text}"
    for each in declared:
        if isinstance(each, Entry):
            continue
        name, value = f"{prefix}{each.tables.key}", getattr(made, each.name)
        for one in value if each.is_array else (value,):
            yield f"[[{name}]]" if each.is_array else f"[{name}]"
            yield from _lines(one, f"{name}.")
