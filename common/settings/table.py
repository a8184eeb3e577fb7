"""A TOML table that is read key by key. What is wrong with it is collected, to be said at once."""

import difflib
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.settings import ConfigError


class Table:
    """A TOML table (or the flags of a command line) that is read key by key.

    file:   names the source in errors. prefix: where the table stands, e.g. `service[0].`.
    faults: gets what is wrong; shared with the tables within. faulty: the keys of this table.
    """

    def __init__(
        self, file: str, values: dict[str, Any], prefix: str = "",
        faults: list[ConfigError] | None = None,
    ) -> None:
        self.file = file
        self.prefix = prefix
        self.faults: list[ConfigError] = [] if faults is None else faults
        self.faulty: set[str] = set()
        self._values = values
        self._known: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def refuse(self, key: str, value: object, expected: str, example: str = "") -> None:
        """Note that a key of this table has a value that cannot be used."""
        self.faulty.add(key)
        self.faults.append(self._error(key, value, expected, example))

    def take(self, key: str, read: Callable[[Any], Any]) -> Any:
        """The value of `key` as `read` returns it; None where there is none, or a wrong one.

        read: raises ValueError, which says what it expects.
        """
        self._known.append(key)
        if key not in self._values:
            return None
        value = self._values[key]
        try:
            return read(value)
        except ValueError as wrong:
            self.refuse(key, value, str(wrong))
            return None

    def tables(self, key: str) -> list["Table"]:
        """The array of tables `[[key]]`."""
        self._known.append(key)
        values = self._values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.refuse(key, values, f"tables, written [[{self.prefix}{key}]]")
            return []
        return [
            Table(self.file, value, f"{self.prefix}{key}[{index}].", self.faults)
            for index, value in enumerate(values)
        ]

    def table(self, key: str) -> "Table":
        """The table `[key]`, empty where there is none."""
        self._known.append(key)
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, value, f"a table, written [{self.prefix}{key}]")
            value = {}
        return Table(self.file, value, f"{self.prefix}{key}.", self.faults)

    def finish(self) -> None:
        """Refuse keys that nothing asked for."""
        for key, value in self._values.items():
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, 1)
                known = f"did you mean `{close[0]}`?" if close else ", ".join(sorted(self._known))
                self.refuse(key, value, f"a key that there is: {known}")

    def _error(self, key: str, value: object, expected: str, example: str) -> ConfigError:
        return ConfigError(self.file, self.prefix + key, value, expected, example)


def load_toml(path: Path) -> Table:
    """The file's top table. Raises: ConfigError."""
    try:
        with path.open("rb") as file:
            return Table(str(path), tomllib.load(file))
    except OSError as error:
        raise ConfigError(str(path), "file", str(path), f"a readable file ({error.strerror})") \
            from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "file", str(path), f"valid TOML ({error})") from None
