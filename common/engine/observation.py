"""Lets somebody see each verdict of a data path for a while. It costs nothing while nobody does.

The engine makes its handler of packets anew when that changes, so there is nothing to ask in it.
"""

from collections.abc import Callable

from common.verdict import Verdict

OnPacket = Callable[[bytes, int], Verdict]
Observer = Callable[[bytes, Verdict], None]  # must not raise


class Observation:
    """Who sees the verdicts, if anybody does."""

    def __init__(self) -> None:
        self._observer: Observer | None = None
        self._on_change: Callable[[], None] = lambda: None

    def bind(self, on_change: Callable[[], None]) -> None:
        """on_change: called when another one is to see them, or nobody any more."""
        self._on_change = on_change

    def begin(self, observer: Observer) -> None:
        """Let `observer` see each packet with its verdict, from the next one on."""
        self._observer = observer
        self._on_change()

    def end(self) -> None:
        """Let nobody see them."""
        self._observer = None
        self._on_change()

    def observed(self, on_packet: OnPacket) -> OnPacket:
        """A data path's `on_packet`, which is seen. As it is, where nobody sees it."""
        observer = self._observer
        if observer is None:
            return on_packet

        def decide(packet: bytes, now_ms: int) -> Verdict:
            verdict = on_packet(packet, now_ms)
            observer(packet, verdict)
            return verdict

        return decide
