"""Flags read as a configuration file is: the same keys, the same readers, the same errors."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common import settings
from common.settings import COMMAND_LINE, ConfigError, Table


class Flags(Table):
    """Flags as a table; an error names the flag.

    values: by key, as TOML would have them; an array of tables is a list of Flags.
    names:  what an error calls a key, where that is not `--key`.
    """

    def __init__(self, values: dict[str, Any], names: Mapping[str, str] | None = None) -> None:
        super().__init__(COMMAND_LINE, values)
        self._names = names or {}

    def error(self, key: str, value: object, expected: str) -> ConfigError:
        """The error for one flag."""
        return ConfigError(self.file, self._names.get(key, flag_name(key)), value, expected)

    def tables(self, key: str) -> list[Table]:
        """The tables that one repeatable flag describes."""
        self._known.append(key)
        return self._values.get(key, [])


def flag_name(key: str) -> str:
    """The flag of a key: `secret_file` is `--secret-file`."""
    return "--" + key.replace("_", "-")


def number(text: str) -> int | str:
    """The text of a numeric flag as TOML would have it; what is no number is refused later."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def top_table(named: str | None, default: Path) -> Table:
    """The file that `--config` names, else the default one where it exists, else nothing."""
    if named:
        return settings.load_toml(Path(named))
    return settings.load_toml(default) if default.exists() else Flags({})


def service_tables(
    table: Table, given: dict[str, Any], describe: Callable[[dict[str, Any]], Iterable[Table]]
) -> list[Table]:
    """The services of the file or, where it has none, of the flags; the last that is read of both.

    given:    flags that describe a service. describe: makes tables of them, defaults filled in.
    Raises: ConfigError where both describe services, or a file stands alone without any.
    """
    tables = table.tables("service")
    table.finish()  # `[[services]]` is an unknown key before it is a missing one
    if tables and given:
        key, value = next(iter(given.items()))
        raise ConfigError(
            COMMAND_LINE, flag_name(key), value,
            f"no flag that describes a service, since {table.file} has [[service]]: change it "
            "there, or give --config another file",
        )
    if not tables and not given and table.file != COMMAND_LINE:
        raise table.error("service", None, "at least one [[service]]")
    return tables or list(describe(given))
