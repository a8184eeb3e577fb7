"""Says what is decided about packets, for who runs a program with `--log-level debug`.

A log takes longer than a decision, so no more than some are said in a second, and how many were
not.
"""

import logging
from collections.abc import Callable

from common.capture.replay import ends
from common.verdict import Verdict

MOST = 100  # in a second
log = logging.getLogger(__name__)

OnPacket = Callable[[bytes, int], Verdict]


def narrated(on_packet: OnPacket) -> OnPacket:
    """`on_packet`, which tells of each verdict. As it is, where nobody wants to hear of it."""
    return Narrator(on_packet) if log.isEnabledFor(logging.DEBUG) else on_packet


class Narrator:
    """A data path's `on_packet`, with a word in the log."""

    def __init__(self, on_packet: OnPacket) -> None:
        self._on_packet = on_packet
        self._second = self._said = self._unsaid = 0

    def __call__(self, packet: bytes, now_ms: int) -> Verdict:
        """As a data path's on_packet."""
        verdict = self._on_packet(packet, now_ms)
        if now_ms // 1000 != self._second:
            if self._unsaid:
                log.debug("%d more packets were decided about", self._unsaid)
            self._second, self._said, self._unsaid = now_ms // 1000, 0, 0
        if self._said == MOST:
            self._unsaid += 1
            return verdict
        self._said += 1
        flow, flags, length = ends(packet)
        sent = "".join(f"; sent {ends(made)[0]}" for made in verdict.packets)
        log.debug("%s %s, %d bytes: %s, %s%s", flow, flags, length, verdict.action.value,
                  verdict.reason.value, sent)
        return verdict
