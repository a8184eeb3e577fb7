"""The secret that all balancers and bridges of a cluster share: a file with a key or two.

It needs nothing that has to be installed, so that the programs can say what they take before.
"""

import os
import secrets as _random
import stat
from pathlib import Path
from typing import NamedTuple

KEY_LEN = 16


class Secrets(NamedTuple):
    """The cluster's 16-octet keys. `previous` is still accepted while keys rotate."""

    current: bytes
    previous: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> "Secrets":
        """Read one or two lines of 32 hex digits: current, then previous.

        Raises: ValueError, saying what is wrong, never showing the key.
        """
        lines = text.split()
        if not 1 <= len(lines) <= 2:
            raise ValueError(f"{len(lines)} keys in it, not one or two")
        try:
            keys = [bytes.fromhex(line) for line in lines]
        except ValueError:
            raise ValueError("a key in it is not made of hex digits") from None
        if any(len(key) != KEY_LEN for key in keys):
            raise ValueError("a key in it has not 32 hex digits")
        return cls(*keys)

    def emit(self) -> str:
        """The text that `parse` reads."""
        return "".join(f"{key.hex()}\n" for key in self if key)


def load_secrets(path: str | Path) -> Secrets:
    """Read the secret file.

    Raises: OSError; PermissionError too where others than the owner may read
            it, or may change it; ValueError where its content is not one or two keys.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, encoding="ascii", errors="replace") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError("it is no file")
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError("it is another user's")
        if found.st_mode & 0o077:
            raise PermissionError("others than its owner may read it")
        return Secrets.parse(file.read())


def new_key() -> bytes:
    """A fresh random key."""
    return _random.token_bytes(KEY_LEN)
