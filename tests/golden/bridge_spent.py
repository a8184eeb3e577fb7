"""First data segments that are sent again when their connection has ended."""

from tests.golden.case import Book, Case
from tests.golden.splice import Splice, bridge_config
from tests.golden.stacks import REQUEST, Client, changed

book = Book("packetbridge", bridge_config)
END = 1 + len(REQUEST)
QUICK = {"timeouts": {"closing": 1, "reset": 1}}


def _close(splice: Splice, case: Case) -> None:
    """Both sides, the server first."""
    splice.down(case, "FA", 1, END, ms=(5, 0))
    splice.up(case, "FA", END, 2, ms=(6, 5))
    splice.down(case, "A", 2, END + 1, ms=(7, 6))


@book.case(**QUICK)
def a_first_segment_opens_one_connection_only(case: Case) -> None:
    """Sent again when its flow has left the table, with a cookie that still holds, it does not
    reach the server, also with another payload or a FIN. A new connection on these ports does."""
    splice = Splice()

    splice.open(case)
    splice.up(case, "PA", payload=REQUEST)  # its connection is there
    _close(splice, case)
    case.wait(3000)
    again = splice.at_bridge("PA", payload=REQUEST)
    case.drops("cookie_spent", again, again, splice.at_bridge("PA", payload=b"DELETE /"),
               splice.at_bridge("FPA", payload=REQUEST))
    Splice(Client(isn=0x7000_0000), server_isn=0x4000_0000).open(case)


@book.case()
def a_first_segment_of_an_older_connection_does_not_end_a_newer_one(case: Case) -> None:
    """On the same ports, before the older one's time is up."""
    old, new = Splice(), Splice(Client(isn=0x7000_0000), server_isn=0x4000_0000)

    old.open(case)
    _close(old, case)
    new.open(case)
    case.drops("cookie_spent", old.at_bridge("PA", payload=REQUEST))
    new.up(case, "PA", END, 1, b"more", ms=(9, 0))


@book.case(**QUICK)
def a_first_segment_that_the_server_did_not_take_may_come_again(case: Case) -> None:
    """Damaged under way, or refused: only an open connection spends the cookie."""
    splice = Splice()
    handoff = splice.at_bridge("PA", payload=REQUEST)
    damaged = bytearray(bytes(handoff))
    damaged[-3] ^= 0x20

    case.drops("bad_checksum", bytes(damaged))
    case.sends("replayed", handoff, splice.syn())
    case.sends("reset", changed(splice.syn_ack([], flags="RA", window=0), seq=0),
               splice.reset_to_client(ack=END))
    case.wait(3000)
    splice.open(case)
