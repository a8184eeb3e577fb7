"""Files that only their owner may read, replaced at once: a reader finds the old or the new one."""

import os
import tempfile
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Replace `path` by a file with `text`, which stays even if the host fails right after.

    Its directory must be there; the owner of a file that was there stays. Raises: OSError.
    """
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if path.exists():
            owner = path.stat()
            os.chown(draft, owner.st_uid, owner.st_gid)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
