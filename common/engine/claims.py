"""What one instance on a host may have at a time, and how it is said when another has it."""

from typing import NamedTuple

from common.engine.lock import DIRECTORY, Locks, Taken
from common.settings import ConfigError


class Claim(NamedTuple):
    """Something that one instance on a host may have: the name of its lock, and how to say so."""

    lock: str
    key: str
    value: object
    expected: str


def take(program: str, file: str, claim: Claim, locks: Locks) -> None:
    """Raises: ConfigError where another process has it."""
    try:
        locks.take(claim.lock)
    except Taken as taken:
        which = f"another {program}" + (f" (pid {taken.pid})" if taken.pid else "")
        raise ConfigError(
            file, claim.key, claim.value, f"{claim.expected}: {which} has it; stop that one first"
        ) from None
    except OSError as error:
        raise ConfigError(
            file, claim.key, claim.value, f"the right to lock it in {DIRECTORY} ({error})"
        ) from None
