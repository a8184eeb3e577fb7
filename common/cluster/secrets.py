"""The secret that all balancers and bridges of a cluster share: a file with a key or two.

    d1b07f0ea4c4a1c0e1d8f9b2a3c45566     the key that cookies are made with
    0f3c...                              the one before, which is still accepted
    until 1700003600                     unix time from which it is not
    seed 5a6b...                         of the hash by which balancers choose backends

All but the first line may be missing. Nothing here has to be installed, so that the programs can
say what they take before.
"""

import os
import secrets as _random
import stat
from pathlib import Path
from typing import NamedTuple

KEY_LEN = 16
KEEP_S = 3600  # how long a key is accepted after its rotation


class Secrets(NamedTuple):
    """The cluster's 16-octet keys. `previous` is still accepted while keys rotate."""

    current: bytes
    previous: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> "Secrets":
        """Read one or two times 32 hex digits: current, then previous.

        Raises: ValueError, saying what is wrong, never showing the key.
        """
        lines = text.split()
        if not 1 <= len(lines) <= 2:
            raise ValueError(f"{len(lines)} keys in it, not one or two")
        return cls(*(_octets(line, "a key in it") for line in lines))

    def emit(self) -> str:
        """The text that `parse` reads."""
        return "".join(f"{key.hex()}\n" for key in self if key)


class SecretFile(NamedTuple):
    """What the file has.

    until_s: unix time from which the previous key is not accepted; None where there is none.
    seed:    16 octets, of the hash of keys (balancer/pool/hashing.py); empty where there is none.
    """

    keys: Secrets
    until_s: int | None = None
    seed: bytes = b""

    @classmethod
    def parse(cls, text: str, changed_s: int) -> "SecretFile":
        """changed_s: since when the file has this text, unix time. Raises: ValueError."""
        named: dict[str, str] = {}
        plain = []
        for line in text.splitlines():
            name, _, value = line.strip().partition(" ")
            if name not in ("until", "seed"):
                plain.append(line)
            elif name in named:
                raise ValueError(f"two lines with `{name}` in it")
            else:
                named[name] = value.strip()
        keys = Secrets.parse("\n".join(plain))
        until = named.get("until", str(changed_s + KEEP_S))
        if not until.isdecimal() or len(until) > 12:
            raise ValueError("`until` in it is not followed by a unix time")
        seed = _octets(named["seed"], "the seed in it") if "seed" in named else b""
        return cls(keys, int(until) if keys.previous else None, seed)

    def emit(self) -> str:
        """The text that `parse` reads."""
        until = "" if self.until_s is None else f"until {self.until_s}\n"
        seed = f"seed {self.seed.hex()}\n" if self.seed else ""
        return self.keys.emit() + until + seed

    def keys_at(self, now_s: float) -> Secrets:
        """Which keys hold. now_s: unix time."""
        if self.until_s is not None and now_s >= self.until_s:
            return Secrets(self.keys.current)
        return self.keys


def load(path: str | Path) -> SecretFile:
    """Read the secret file.

    Raises: OSError; PermissionError too where others than its owner may read
            it, or the owner is another user; ValueError where its content is wrong.
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
        return SecretFile.parse(file.read(), int(found.st_mtime))


def load_secrets(path: str | Path) -> Secrets:
    """The keys in the secret file, as `load` reads it."""
    return load(path).keys


def new_key() -> bytes:
    """A fresh random key, or seed."""
    return _random.token_bytes(KEY_LEN)


def _octets(digits: str, what: str) -> bytes:
    try:
        octets = bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"{what} is not made of hex digits") from None
    if len(octets) != KEY_LEN:
        raise ValueError(f"{what} has not 32 hex digits")
    return octets
