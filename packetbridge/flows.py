"""The bridge's flow: one connection of a client, and the same one at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.flow.store import Flow

if TYPE_CHECKING:
    from packetbridge.modes.replay import Replay
    from packetbridge.modes.translate import ServiceState

# States, in the order in which flows are evicted last.
OPEN, REPLAY, CLOSING, RESET = 0, 1, 2, 3

# What has been seen of the end of a flow.
CLIENT_FIN, SERVER_FIN, CLIENT_FIN_ACKED, SERVER_FIN_ACKED = 1, 2, 4, 8
ENDED = CLIENT_FIN | SERVER_FIN | CLIENT_FIN_ACKED | SERVER_FIN_ACKED


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
                  the client knows them. server_acked: what the client has acknowledged.
    ending:       the bits above. replay: until the server has answered.
    """

    __slots__ = (
        "advertised_wscale", "client_isn", "client_next", "client_wscale", "cookie_isn", "ending",
        "is_open", "replay", "seq_delta", "server_acked", "server_next", "server_wscale",
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
        self.client_next = client_isn + 1 & 0xFFFFFFFF
        self.server_next = self.server_acked = cookie_isn + 1 & 0xFFFFFFFF
        self.ending = 0
        self.replay: Replay | None = None
