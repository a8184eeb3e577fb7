"""One connection on the bridge's two sides, told once.

A `Splice` names everything relative to where its side begins: sequence numbers
to the initial ones, timestamps in ms to the first ones. `at_bridge` and
`at_server` give the client's segment on either side, `from_server` and
`at_client` the server's. So no case reckons a difference between the sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scapy.packet import Packet

from tests.golden.case import Case
from tests.golden.stacks import (
    BRIDGES,
    CLIENT_CLOCK,
    DSCP,
    NOP,
    REQUEST,
    SACK_OK,
    VIP,
    Client,
    Options,
    named,
    whole,
)

BRIDGE, SERVER, SERVER_PORT = BRIDGES[1], "192.168.33.30", 8080
ROUND_TRIP_MS = 20


@dataclass(frozen=True)
class Splice:
    """A client's connection and the one at the server.

    server_isn, server_clock: the server's initial sequence number and TSval.
    server_wscale: None where the server does not answer the option.
    echo:         what the handoff's TSecr says; there the client sees the server's clock begin.
                  On the way to the bridge it also proves that it is for this one.
    bridge:       the one for which it does.
    """

    client: Client = field(default_factory=Client)
    server_isn: int = 0x2000_0000
    server_clock: int = 1_234_567
    server_wscale: int | None = 7
    server: str = SERVER
    server_port: int = SERVER_PORT
    dscp: int = DSCP
    echo: int = named(1, ROUND_TRIP_MS)
    bridge: str = BRIDGE

    # --- the client's segments ---

    def at_bridge(self, flags: str, seq: int = 1, ack: int = 1, payload: bytes = b"", *,
                  ms: tuple[int, int] = (0, 0), sack: Sequence[int] = (), tos: int = 0,
                  ttl: int = 63, **fields: Any) -> Packet:
        """A client's segment as the balancer sends it."""
        client = self.client
        return whole(
            src=client.address, dst=BRIDGE, sport=client.port, dport=client.vip_port,
            seq=client.isn + seq, ack=client.cookie_isn + ack, flags=flags, payload=payload,
            options=self._options((CLIENT_CLOCK, self.echo + self._proof(seq)), ms,
                                  client.cookie_isn, sack),
            tos=self.dscp << 2 | tos & 3, ttl=ttl, **{"window": 502, "id": 77, **fields},
        )

    def at_server(self, flags: str, seq: int = 1, ack: int = 1, payload: bytes = b"", *,
                  ms: tuple[int, int] = (0, 0), sack: Sequence[int] = (), tos: int = 0,
                  ttl: int = 63, **fields: Any) -> Packet:
        """The same segment as the server gets it."""
        client = self.client
        return whole(
            src=client.address, dst=self.server, sport=client.port, dport=self.server_port,
            seq=client.isn + seq, ack=self.server_isn + ack, flags=flags, payload=payload,
            options=self._options((CLIENT_CLOCK, self.server_clock), ms, self.server_isn, sack),
            tos=tos & 3, ttl=ttl - 1, **{"window": 502, "id": 77, **fields},
        )

    # --- the server's segments ---

    def from_server(self, flags: str, seq: int = 1, ack: int = 1, payload: bytes = b"", *,
                    ms: tuple[int, int] = (0, 0), sack: Sequence[int] = (), **fields: Any
                    ) -> Packet:
        """A server's segment as the server sends it."""
        client = self.client
        return whole(
            src=self.server, dst=client.address, sport=self.server_port, dport=client.port,
            seq=self.server_isn + seq, ack=client.isn + ack, flags=flags, payload=payload,
            options=self._options((self.server_clock, CLIENT_CLOCK), ms, client.isn, sack),
            **{"window": 509, "id": 88, **fields},
        )

    def at_client(self, flags: str, seq: int = 1, ack: int = 1, payload: bytes = b"", *,
                  ms: tuple[int, int] = (0, 0), sack: Sequence[int] = (), **fields: Any
                  ) -> Packet:
        """The same segment as the client gets it."""
        client = self.client
        return whole(
            src=client.vip, dst=client.address, sport=client.vip_port, dport=client.port,
            seq=client.cookie_isn + seq, ack=client.isn + ack, flags=flags, payload=payload,
            options=self._options((self.echo, CLIENT_CLOCK), ms, client.isn, sack),
            **{"window": 509, "id": 88, **fields},
        )

    def _proof(self, seq: int) -> int:
        """What the TSecr of the segment after the client's ISN has beside the clock."""
        return self.client.proof(self.bridge) if seq == 1 else 0

    def _options(self, clocks: tuple[int, int], ms: tuple[int, int], isn: int,
                 sack: Sequence[int]) -> Options:
        """Timestamps and SACK blocks in the usual layout; edges relative to `isn`."""
        options: Options = []
        if self.client.timestamps:
            tsval, tsecr = (first + after & 0xFFFFFFFF for first, after in
                            zip(clocks, ms, strict=True))
            options += [NOP, NOP, ("Timestamp", (tsval, tsecr))]
        if sack:
            options += [NOP, NOP, ("SAck", tuple(isn + edge & 0xFFFFFFFF for edge in sack))]
        return options

    # --- the replayed handshake ---

    def syn(self, options: Options | None = None, *, window: int = 502 << 7) -> Packet:
        """The replayed SYN; without `options`, what Linux offers."""
        client = self.client
        if options is None:
            options = [("MSS", 1460), SACK_OK, ("Timestamp", (CLIENT_CLOCK, 0)), NOP, ("WScale", 7)]
            if not client.timestamps:
                options[1:3] = [NOP, NOP, SACK_OK]
        return whole(
            src=client.address, dst=self.server, sport=client.port, dport=self.server_port,
            seq=client.isn, flags="S", window=window, options=options,
        )

    def syn_ack(self, options: Options | None = None, **fields: Any) -> Packet:
        """The server's answer to it; without `options`, what Linux says."""
        if options is None:
            options = [("MSS", 1460)]
            stamp = ("Timestamp", (self.server_clock, CLIENT_CLOCK))
            options += [SACK_OK, stamp] if self.client.timestamps else [NOP, NOP, SACK_OK]
            if self.server_wscale is not None:
                options += [NOP, ("WScale", self.server_wscale)]
        client = self.client
        stack = {"flags": "SA", "ack": client.isn + 1, "window": 65160, **fields}
        return whole(
            src=self.server, dst=client.address, sport=self.server_port, dport=client.port,
            seq=self.server_isn, options=options, **stack,
        )

    # --- the usual course of things ---

    def open(self, case: Case, payload: bytes = REQUEST) -> None:
        """The handoff opens the flow, and the server answers at once."""
        case.sends("replayed", self.at_bridge("PA", payload=payload), self.syn())
        case.sends("opened", self.syn_ack(), self.at_server("PA", payload=payload))

    def up(self, case: Case, flags: str, seq: int = 1, ack: int = 1, payload: bytes = b"",
           **fields: Any) -> None:
        """The client's segment passes to the server."""
        case.sends("to_server", self.at_bridge(flags, seq, ack, payload, **fields),
                   self.at_server(flags, seq, ack, payload, **fields))

    def down(self, case: Case, flags: str, seq: int = 1, ack: int = 1, payload: bytes = b"", *,
             at_client: dict[str, Any] | None = None, **fields: Any) -> None:
        """The server's segment passes to the client. at_client: fields that differ there."""
        case.sends("to_client", self.from_server(flags, seq, ack, payload, **fields),
                   self.at_client(flags, seq, ack, payload, **{**fields, **(at_client or {})}))

    def reset_to_client(self, *, seq: int = 1, ack: int | None = None) -> Packet:
        """The bridge's own reset, as from the VIP; `ack` where it acknowledges something."""
        client = self.client
        return whole(
            src=client.vip, dst=client.address, sport=client.vip_port, dport=client.port,
            seq=client.cookie_isn + seq, ack=0 if ack is None else client.isn + ack,
            flags="R" if ack is None else "RA",
        )

    def reset_to_server(self, *, seq: int = 1) -> Packet:
        """The bridge's own reset, as from the client."""
        client = self.client
        return whole(
            src=client.address, dst=self.server, sport=client.port, dport=self.server_port,
            seq=client.isn + seq, flags="R",
        )


def bridge_config(
    *, services: Sequence[dict[str, Any]] = ({},), **config: Any
) -> dict[str, Any]:
    """A bridge's TOML: the service of VIP:80 at SERVER:SERVER_PORT unless others are given."""
    default = {"dscp": DSCP, "vip": f"{VIP}:80", "server": f"{SERVER}:{SERVER_PORT}"}
    return {
        "address": BRIDGE, **config,
        "service": [{**default, **service} for service in services],
    }
