"""What a data path keeps its flows in, whatever that is: memory, or a program's map.

What is changed in a flow counts from `update` on, and nothing is written by anything else: a store
may make a flow anew for each `get`.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

SEEN_MS = 1000  # to which a flow's time is exact: finer than any timeout


class Flow:
    """What any flow has; each program adds its own fields.

    key:     the five-tuple. state: index of its timeout. seen_ms: about the last packet.
    """

    __slots__ = ("key", "newer", "older", "seen_ms", "state")
    older: "Flow"  # these two are MemoryStore's
    newer: "Flow"

    def __init__(self, key: bytes, state: int, now_ms: int) -> None:
        self.key = key
        self.state = state
        self.seen_ms = now_ms


F = TypeVar("F", bound=Flow)


class FlowStore(Protocol[F]):
    """Flows by five-tuple, bounded in number, with a timeout for each state.

    States are numbered in order of rising readiness to go. evicted: flows that had to make room.
    """

    evicted: int

    def get(self, key: bytes, /) -> F | None:
        """The flow of a five-tuple."""

    def insert(self, flow: F, least: int = 0) -> bool:
        """Add a flow; one with the same key leaves. Returns: whether there was room.

        least: a full store has room only where flows of this state can go, or of a later one.
        """

    def set_bounds(self, max_flows: int, timeouts_ms: Sequence[int]) -> None:
        """Have another size, as far as that can be, and other timeouts, by state."""

    def update(self, flow: F) -> None:
        """Keep what was changed in a flow's own fields."""

    def touch(self, flow: F, now_ms: int) -> None:
        """Note that a packet of `flow` was seen; exact to SEEN_MS."""

    def move(self, flow: F, state: int, now_ms: int) -> None:
        """Put `flow` into `state`, seen now."""

    def remove(self, flow: F) -> None:
        """Take `flow` out."""

    def expire(self, now_ms: int) -> list[F]:
        """Remove and return flows idle for longer than their state's timeout, some in each call."""

    def glance(self) -> Iterator[F]:
        """All flows about as they are now, in any thread. They are copies, or only to be read."""

    def count(self, owner: object, /) -> int:
        """How many flows an owner has; who that is depends on the flow."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[F]: ...
