"""When to look at which bridge. Pure; times are monotonic, in seconds.

All are looked at in turn, those in doubt at once. One that stays ill is looked at less and less
often: each look at it hands a connection over, and has the bridge listen for it.
"""

import heapq
from collections.abc import Iterable
from itertools import count
from random import Random

EVERY_S, PACE_S = 3.0, 0.1  # for each bridge, and for each of very many
AGAIN_S, LONG_S = 1.0, 15.0  # between two looks at one, at least; at one that stays ill, at most


class _Turn:
    """Of one bridge. due_s: inf while it is looked at. is_doubted: since that look began."""

    __slots__ = ("due_s", "ended_s", "is_doubted", "pause_s")

    def __init__(self, due_s: float) -> None:
        self.due_s = due_s
        self.ended_s = float("-inf")
        self.pause_s = 0.0
        self.is_doubted = False


class Agenda:
    """Of all bridges, by address."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._turns: dict[bytes, _Turn] = {}
        self._due: list[tuple[float, int, bytes]] = []
        self._order = count()

    def follow(self, addresses: Iterable[bytes], now_s: float) -> set[bytes]:
        """Look at these from now on. Returns: those that are looked at no more."""
        wanted = set(addresses)
        gone = self._turns.keys() - wanted
        for address in gone:
            del self._turns[address]
        for address in wanted - self._turns.keys():
            turn = self._turns[address] = _Turn(0)
            self._plan(address, turn, now_s + self._random.random() * EVERY_S)
        return gone

    @property
    def due_s(self) -> float:
        """When `take` may have one."""
        return self._due[0][0] if self._due else float("inf")

    def doubt(self, address: bytes, now_s: float) -> None:
        """Something speaks against a bridge, or does no more: look at it soon."""
        turn = self._turns.get(address)
        if turn is None:
            return
        if turn.due_s == float("inf"):
            turn.is_doubted = True
        else:
            self._plan(address, turn, min(turn.due_s, max(now_s, turn.ended_s + AGAIN_S)))

    def take(self, now_s: float) -> bytes | None:
        """One that is to be looked at now, and is not again before `done`."""
        while self._due and self._due[0][0] <= now_s:
            due_s, _, address = heapq.heappop(self._due)
            turn = self._turns.get(address)
            if turn and turn.due_s == due_s:
                turn.due_s = float("inf")
                turn.is_doubted = False
                return address
        return None

    def done(self, address: bytes, now_s: float, is_ill: bool) -> None:
        """A look has ended."""
        turn = self._turns.get(address)
        if turn is None:
            return
        turn.ended_s = now_s
        every_s = max(EVERY_S, len(self._turns) * PACE_S)
        turn.pause_s = min(max(2 * turn.pause_s, AGAIN_S), LONG_S) if is_ill else 0.0
        pause_s = AGAIN_S if turn.is_doubted else turn.pause_s or every_s
        self._plan(address, turn, now_s + pause_s)

    def _plan(self, address: bytes, turn: _Turn, due_s: float) -> None:
        if due_s != turn.due_s:
            turn.due_s = due_s
            heapq.heappush(self._due, (due_s, next(self._order), address))
