"""Write the golden cases anew: python -m tests.golden.generate

The expected packets are built here, from scapy stacks and from hashes of this
folder's own; nothing of the programs is run. So a case that fails says that the
program, or the sentence, is wrong, and never that it must be recorded again.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.golden import (
    balancer_ends,
    balancer_flows,
    balancer_handoff,
    balancer_handshake,
    balancer_hold,
    balancer_refused,
    balancer_request,
    bridge_endings,
    bridge_handoff,
    bridge_refused,
    bridge_spent,
    bridge_translation,
)
from tests.golden.case import Case

FOLDER = Path(__file__).parent
BOOKS = (
    balancer_handshake.book, balancer_handoff.book, balancer_request.book, balancer_hold.book,
    balancer_flows.book, balancer_ends.book,
    balancer_refused.book,
    bridge_handoff.book,
    bridge_translation.book, bridge_endings.book, bridge_refused.book,
    bridge_spent.book,
)


def tell_all() -> Iterator[Case]:
    """Every case of both programs."""
    for book in BOOKS:
        yield from book.tell()


def write_all(root: Path) -> int:
    """Write every case under `root`, and return how many there are."""
    count = 0
    for case in tell_all():
        case.write(root)
        count += 1
    return count


def main() -> None:
    """Replace the cases beside this file."""
    for program in {book.program for book in BOOKS}:
        shutil.rmtree(FOLDER / program, ignore_errors=True)
    print(f"{write_all(FOLDER)} cases")


if __name__ == "__main__":
    main()
