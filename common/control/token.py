"""The token that orders need where anybody who reaches an address can give them."""

import hmac
import os
import stat
from pathlib import Path

from common.settings import ConfigError

_LEAST = 16
_SCHEME = "Bearer "  # RFC 6750 §2.1


def read(file: str, path: str) -> str:
    """The token in a file that only its owner can read. Raises: ConfigError, naming `file`."""
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise PermissionError("it is no file of this user's or root's")
        if found.st_mode & 0o077:
            raise PermissionError("others may use it")
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _error(file, path, why) from None
    if len(token) < _LEAST or not token.isprintable() or " " in token:
        raise _error(file, path, f"a line of {_LEAST} letters or more is needed")
    return token


def is_right(token: str, authorization: str) -> bool:
    """Whether a request may give orders. authorization: its header."""
    given = authorization.removeprefix(_SCHEME).encode(errors="surrogateescape")
    return authorization.startswith(_SCHEME) and hmac.compare_digest(given, token.encode())


def _error(file: str, path: str, why: str) -> ConfigError:
    return ConfigError(file, "token_file", path, (
        f"a file that its owner alone may read, with a token in it ({why}): "
        f"(umask 077; openssl rand -hex 32 >{path})"))
