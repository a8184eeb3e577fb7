"""The bridge's flow: one connection of a client, and the same one at the server."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from common.flow.store import Flow

if TYPE_CHECKING:
    from packetbridge.modes.replay import Replay
    from packetbridge.modes.translate import ServiceState

# States, in the order in which flows are evicted last.
OPEN, REPLAY, CLOSING, RESET = 0, 1, 2, 3
STATES = ("open", "replay", "closing", "reset")  # by number


class Turn(Enum):
    """What moves a flow from one state to another."""

    ANSWERED = "the server has taken the replayed SYN"
    REFUSED = "the server has refused it"
    GIVEN_UP = "the server has not answered in time"
    ENDED = "both sides' FINs are acknowledged"
    RESET = "one side has reset the connection"


AFTER: dict[int, dict[Turn, int]] = {
    REPLAY: {
        Turn.ANSWERED: OPEN, Turn.REFUSED: RESET, Turn.GIVEN_UP: RESET, Turn.RESET: RESET,
    },
    OPEN: {Turn.ENDED: CLOSING, Turn.RESET: RESET},
    CLOSING: {Turn.RESET: RESET},
    RESET: {Turn.RESET: RESET},
}

# What has been seen of the end of a flow.
CLIENT_FIN, SERVER_FIN, CLIENT_FIN_ACKED, SERVER_FIN_ACKED = 1, 2, 4, 8
ENDED = CLIENT_FIN | SERVER_FIN | CLIENT_FIN_ACKED | SERVER_FIN_ACKED

# What a side's segment tells of it: whether it has a FIN, and acknowledges the other side's.
TOLD_BY_CLIENT: dict[tuple[bool, bool], int] = {
    (False, False): 0,
    (True, False): CLIENT_FIN,
    (False, True): SERVER_FIN_ACKED,
    (True, True): CLIENT_FIN | SERVER_FIN_ACKED,
}
TOLD_BY_SERVER: dict[tuple[bool, bool], int] = {
    (False, False): 0,
    (True, False): SERVER_FIN,
    (False, True): CLIENT_FIN_ACKED,
    (True, True): SERVER_FIN | CLIENT_FIN_ACKED,
}


class BridgeFlow(Flow):
    """A flow from its handoff on.

    key:          the five-tuple of packets from the client to the server.
    client_isn, cookie_isn: of the client's handshake.
    is_open:      whether the server has answered; only then do the deltas mean something.
    seq_delta:    cookie_isn − server_isn.
    ts_delta:     added to the server's TSval.
    server_wscale, advertised_wscale: shifts of the server's windows, as it sends them and as
                  the client reads them.
    client_wscale: shift to apply to the client's windows where the server takes them unscaled.
    client_next, server_next: the sequence numbers after the last octet seen of each side, as
                  the client knows them. client_acked: what the server has acknowledged, which
                  nobody else can say; by it is judged what clients' segments say.
    ending:       the bits above. replay: until the server has answered.
    """

    __slots__ = (
        "advertised_wscale", "client_acked", "client_isn", "client_next", "client_wscale",
        "cookie_isn", "ending", "is_open", "replay", "seq_delta", "server_next", "server_wscale",
        "service", "ts_delta",
    )

    def __init__(
        self, key: bytes, service: ServiceState, client_isn: int, cookie_isn: int, now_ms: int
    ) -> None:
        super().__init__(key, REPLAY, now_ms)
        self.service = service
        self.client_isn = client_isn
        self.cookie_isn = cookie_isn
        self.is_open = False
        self.seq_delta = 0
        self.ts_delta = 0
        self.server_wscale = self.advertised_wscale = self.client_wscale = 0
        self.client_next = self.client_acked = client_isn + 1 & 0xFFFFFFFF
        self.server_next = cookie_isn + 1 & 0xFFFFFFFF
        self.ending = 0
        self.replay: Replay | None = None
