"""Servers that do not take the connections that are handed over: said, with what to look at.

For each server and fault at once, and then every ten seconds how many there were: clients, or who
pretends to be some, may try as often as they like.
"""

import logging
from collections import Counter

from common.engine.log import fields
from packetbridge.flows import Turn
from packetbridge.modes.translate import ServiceState

EVERY_MS = 10_000
_TEXTS = {
    Turn.REFUSED: "%s refuses connections of %s (%d), whose clients are reset: does the server "
                  "listen there? ss -ltn",
    Turn.GIVEN_UP: "%s does not answer connections of %s (%d), whose clients are reset: the server "
                   "hangs, its accept queue is full (ss -ltn), or this host's firewall drops them",
}
log = logging.getLogger(__name__)


class Trouble:
    """What servers have refused, or left unanswered."""

    def __init__(self) -> None:
        self._unsaid: Counter[tuple[ServiceState, Turn]] = Counter()
        self._next_ms: dict[tuple[ServiceState, Turn], int] = {}

    def note(self, service: ServiceState, turn: Turn) -> None:
        """A connection has ended so before it began."""
        if turn in _TEXTS:
            self._unsaid[service, turn] += 1

    def on_tick(self, now_ms: int) -> None:
        """Say what is not said yet."""
        for (service, turn), count in list(self._unsaid.items()):
            if now_ms < self._next_ms.get((service, turn), now_ms):
                continue
            self._next_ms[service, turn] = now_ms + EVERY_MS
            del self._unsaid[service, turn]
            config = service.config
            server = f"{config.server}:{config.server_port}"
            log.warning(_TEXTS[turn], server, config.name, count,
                        extra=fields(event=f"server_{turn.name.lower()}", server=server,
                                     service=config.name, count=count))
