"""Settings: declared once (schema), read strictly, every error with its remedy."""

from collections.abc import Sequence

COMMAND_LINE = "command line"
_SHOWN_LEN = 200


class ConfigError(Exception):
    """A value that cannot be used: where it stands, what it is, and what would be right.

    As text it is one line, whatever the value is; `example` are further ones, to be copied.
    """

    def __init__(
        self, file: str, key: str, value: object, expected: str, example: str = ""
    ) -> None:
        shown = repr(value)
        if len(shown) > _SHOWN_LEN:
            shown = shown[:_SHOWN_LEN] + "…"
        line = " ".join(f"{file}: {key} = {shown}: expected {expected}".split())
        super().__init__(f"{line}\n{example}" if example else line)
        self.file, self.key, self.value, self.expected = file, key, value, expected

    @property
    def faults(self) -> Sequence["ConfigError"]:
        """The single faults that this consists of."""
        return [self]


class ConfigErrors(ConfigError):
    """Several values that cannot be used. As text it is a line for each."""

    def __init__(self, faults: Sequence[ConfigError]) -> None:
        first = faults[0]
        super().__init__(first.file, first.key, first.value, first.expected)
        self.args = ("\n".join(map(str, faults)),)
        self._faults = faults

    @property
    def faults(self) -> Sequence[ConfigError]:
        """The single faults that this consists of."""
        return self._faults


def raise_faults(faults: Sequence[ConfigError]) -> None:
    """Raises: ConfigError, if there are any, with all of them."""
    if faults:
        raise faults[0] if len(faults) == 1 else ConfigErrors(faults)
