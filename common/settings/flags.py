"""Flags read as a configuration file is: the same keys, the same readers, the same errors."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common.settings import COMMAND_LINE, ConfigError, readers
from common.settings.schema import Draft, Entry, Within, entries
from common.settings.table import Table, load_toml


class Flags(Table):
    """Flags as a table; an error names the flag.

    values: by key, as TOML would have them; an array of tables is a list of Flags.
    names:  what an error calls a key, where that is not `--key`.
    """

    def __init__(
        self, values: dict[str, Any], names: Mapping[str, str] | None = None,
        faults: list[ConfigError] | None = None,
    ) -> None:
        super().__init__(COMMAND_LINE, values, faults=faults)
        self._names = names or {}

    def tables(self, key: str) -> list[Table]:
        """The tables that one repeatable flag describes."""
        self._known.append(key)
        return self._values.get(key, [])

    def _error(self, key: str, value: object, expected: str, example: str) -> ConfigError:
        name = self._names.get(key, flag_name(key))
        return ConfigError(self.file, name, value, expected, example)


def flag_name(key: str) -> str:
    """The flag of a key: `secret_file` is `--secret-file`."""
    return "--" + key.replace("_", "-")


def number(text: str) -> int | str:
    """The text of a numeric flag as TOML would have it; what is no number is refused later."""
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    return int(text) if text.removeprefix("-").isdecimal() else text


def truth(text: str) -> bool | str:
    """The text of a flag that is on or off as TOML would have it."""
    return {"true": True, "false": False}.get(text, text)


def with_flag(shape: type) -> list[Entry | Within]:
    """What a dataclass declares that has a flag."""
    return [entry for entry in entries(shape) if _of(entry).metavar]


def add_flags(group: Any, shape: type) -> None:
    """Add the flags of a dataclass's settings to a group of a parser."""
    for entry in with_flag(shape):
        options: dict[str, Any] = {"action": "append"} if _of(entry).repeated else {}
        if isinstance(entry, Entry) and entry.setting.read.numeric:
            options["type"] = number
        elif isinstance(entry, Entry) and entry.setting.read in (
                readers.flag, readers.unix_socket):
            options["type"] = truth
        usage = entry.setting.usage if isinstance(entry, Entry) else ""
        text = f"{_of(entry).help}{usage}{_range_of(entry)}".replace("%", "%%")
        group.add_argument(_flag_of(entry), dest=_key(entry), metavar=_of(entry).metavar,
                           help=text, **options)


def names_of(shape: type) -> dict[str, str]:
    """The flags of a dataclass's settings, by key."""
    return {_key(entry): _flag_of(entry) for entry in with_flag(shape)}


def keys_of(shape: type) -> list[str]:
    """The keys that are flags as well."""
    return [_key(entry) for entry in with_flag(shape)]


def _of(entry: Entry | Within) -> Any:
    return entry.setting if isinstance(entry, Entry) else entry.tables


def _key(entry: Entry | Within) -> str:
    return entry.key if isinstance(entry, Entry) else entry.tables.key


def _flag_of(entry: Entry | Within) -> str:
    return (isinstance(entry, Entry) and entry.setting.flag) or flag_name(_key(entry))


def _range_of(entry: Entry | Within) -> str:
    """The end of a flag's help: which numbers there are, and the default."""
    notes = []
    if isinstance(entry, Within):
        notes.append(f"in the lab: {' and '.join(entry.tables.lab)}")
    else:
        setting = entry.setting
        if setting.read.numeric:
            notes.append(setting.read.kind)
        if setting.lab is not None:
            lab = setting.lab if isinstance(setting.lab, str) else " and ".join(setting.lab)
            notes.append(f"in the lab: {lab}")
        elif setting.flag_default is not None:
            notes.append(f"default {setting.flag_default}")
        elif setting.default:
            notes.append(f"default: {setting.default}")
        elif entry.shown_default:
            notes.append("default " + entry.shown_default.strip('"'))
    return f" ({', '.join(notes)})" if notes else ""


# --- services that flags describe ---


def top_table(named: str | None, default: Path) -> Table:
    """The file that `--config` names, else the default one where it exists, else nothing."""
    if named:
        return load_toml(Path(named))
    return load_toml(default) if default.exists() else Flags({})


def filled(shape: type, given: Mapping[str, Any], in_lab: bool) -> dict[str, Any]:
    """The flags of one service, with the defaults of those that were not given."""
    values = dict(given)
    for entry in with_flag(shape):
        if in_lab and _of(entry).lab is not None:
            values.setdefault(_key(entry), _of(entry).lab)
        elif isinstance(entry, Entry) and entry.setting.flag_default is not None:
            values.setdefault(entry.key, entry.setting.flag_default)
    return values


def described(
    top: Draft[Any], given: Mapping[str, Any], describe: Callable[[], Iterable[Table]],
) -> list[Table]:
    """The services that flags describe, where the file has none.

    given: flags that describe a service. describe: makes tables of them.
    """
    table = top.table
    if top.values["services"] or "service" in table.faulty:
        if given:
            key, value = next(iter(given.items()))
            Flags({}, faults=table.faults).refuse(
                key, value, f"no flag that describes a service, since {table.file} has "
                            "[[service]]: change it there, or give --config another file",
            )
        return []
    if given or table.file == COMMAND_LINE:
        return list(describe())
    if not difflib.get_close_matches("service", table.faulty):  # `[[services]]` is refused already
        table.refuse("service", None, "at least one [[service]]")
    return []
