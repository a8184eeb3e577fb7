"""Handshakes with a balancer, as its client and its bridge see them: for packets made by hand."""

from dataclasses import dataclass
from functools import cached_property

from common.cluster import cookie, stamps
from common.cluster.cookie import Offer, Secrets


@dataclass(frozen=True)
class Handshake:
    """One of a client with `five_tuple`. now_ms: when its SYN was answered."""

    secrets: Secrets
    five_tuple: bytes
    client_isn: int
    now_ms: int
    offer: Offer = Offer(1460, True, 7)

    @cached_property
    def hash(self) -> int:
        """What vouches for it."""
        return cookie.handshake_hash(
            self.secrets.current, self.five_tuple, self.client_isn, cookie.epoch_at(self.now_ms))

    @property
    def cookie_isn(self) -> int:
        """The SYN-ACK's ISN."""
        return cookie.of_hash(self.hash, self.five_tuple, self.offer)

    @property
    def t0(self) -> int:
        """The SYN-ACK's TSval."""
        return stamps.t0(self.hash, self.now_ms)

    def handed(self, bridge: bytes, start: int = 1 << 24, round_trip_ms: int = 5) -> int:
        """The handoff's TSecr. bridge: the address that it is for. start: the id, shifted."""
        return start | stamps.handoff_mac(self.hash, bridge) | round_trip_ms
