"""Both data paths with small bounds, and the numbers that they deal in."""

import struct
from dataclasses import replace
from ipaddress import IPv4Address
from random import Random
from typing import Any

from balancer import config as balancer_config
from balancer.datapath import Datapath as Balancer
from balancer.keys.request import KeySpec
from balancer.modes.split.mode import Split
from common.cluster.cookie import Offer, Secrets
from lab.handshakes import Handshake
from packetbridge import config as bridge_config
from packetbridge.datapath import Datapath as Bridge

SECRETS = Secrets(bytes(range(16)))
VIP, BRIDGE, SERVER = (IPv4Address(f"192.168.33.{host}") for host in (10, 20, 30))
BACKENDS = tuple(BRIDGE + number for number in range(3))
CLIENT = IPv4Address("192.168.33.1").packed
VIP_PORT, SERVER_PORT, DSCP = 80, 8080, 3
START_MS = 1_700_000_010_000
MAX_FLOWS, HOLD_OCTETS = 8, 9000
REQUEST = b"GET /a/rather/long/path?q=1 HTTP/1.1\r\nHost: shop.example.net\r\nX: y\r\n\r\n"
HOLD = balancer_config.Hold(octets=1500, segments=60, time_ms=3000)
_BACKENDS = tuple(
    balancer_config.Backend(number, address) for number, address in enumerate(BACKENDS, 1)
)
_SERVICE = balancer_config.Service(
    name="web", vip=VIP, port=VIP_PORT, dscp=DSCP, key=KeySpec.parse("http.host+path"),
    backends=_BACKENDS, hold=HOLD, scheduler="rendezvous",  # Maglev's table takes 25 ms to fill
)


def balancer(
    *, hold_octets: int = HOLD_OCTETS, new_flow_rate: int = 50_000, **service: Any
) -> Balancer:
    """A balancer of three backends. service: what is different about its service."""
    config = balancer_config.Config(
        services=(replace(_SERVICE, **service),), max_flows=MAX_FLOWS,
        hold_octets_total=hold_octets, new_flow_rate=new_flow_rate,
    )
    return Balancer(config, SECRETS, random=Random(1))


def split_of(datapath: Balancer) -> Split:
    """What a balancer does with its service."""
    split = datapath.modes["split"]
    assert isinstance(split, Split)
    return split


def bridge(address: IPv4Address = BRIDGE) -> Bridge:
    """A backend's bridge."""
    service = bridge_config.Service(
        name="web", dscp=DSCP, vip=VIP, port=VIP_PORT, server=SERVER, server_port=SERVER_PORT
    )
    config = bridge_config.Config(services=(service,), address=address, max_flows=MAX_FLOWS)
    return Bridge(config, SECRETS, random=Random(1))


def ends(port: int, to: IPv4Address = VIP) -> bytes:
    """The five-tuple of a client's packets."""
    return CLIENT + to.packed + struct.pack("!HH", port, VIP_PORT)


def handshake(
    port: int, client_isn: int, now_ms: int, offer: Offer = Offer(1460, True, 7)
) -> Handshake:
    """What a balancer answers a client's SYN with."""
    return Handshake(SECRETS, ends(port), client_isn, now_ms, offer)


def cookie_of(port: int, client_isn: int, now_ms: int, offer: Offer = Offer(1460, True, 7)) -> int:
    """The cookie_isn of it."""
    return handshake(port, client_isn, now_ms, offer).cookie_isn
