"""A bridge's data path takes other services: what stays, what is reset, what is known of each."""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from common.cluster.cookie import Secrets
from common.settings.table import Table
from common.verdict import Action
from common.wire import tcp
from common.wire.family import look
from common.wire.five_tuple import join
from common.wire.tcp import ACK, RST, Segment
from packetbridge import config
from packetbridge.datapath import Datapath
from packetbridge.flows import BridgeFlow

BRIDGE, VIP, SERVER = (bytes([192, 0, 2, last]) for last in (20, 10, 30))
CLIENT = bytes([203, 0, 113, 1])
WEB = '[[service]]\nname = "web"\nvip = "192.0.2.10:80"\nserver = "192.0.2.30:8080"\n'
TLS = WEB.replace('"web"', '"tls"\ndscp = 7').replace(":80\"", ":443\"").replace("8080", "8443")


def services(text: str) -> Sequence[config.Service]:
    top = 'interface = "eth0"\naddress = "192.0.2.20"\n'
    return config.read(Table("x.toml", tomllib.loads(top + text))).services


class Bench:
    def __init__(self, text: str) -> None:
        configured = config.read(Table("x.toml", tomllib.loads(
            'interface = "eth0"\naddress = "192.0.2.20"\n' + text)))
        self.datapath = Datapath(configured, Secrets(bytes(16)), random=Random(1))

    def serve(self, text: str) -> list[bytes]:
        return self.datapath.serve(services(text), frozenset(), 1000)

    def enter(self, sport: int, port: int = 80) -> BridgeFlow:
        """An open flow of a service."""
        state = next(each for each in self.datapath.services.values() if each.config.port == port)
        key = state.key_of(CLIENT, sport.to_bytes(2, "big"))
        flow = BridgeFlow(key, state, 1, 1, 0)
        flow.is_open = True
        self.datapath.flows.insert(flow)
        return flow

    def passes_on(self, sport: int, port: int = 80, dscp: int = 3) -> bool:
        """Whether a client's packet goes on to a server."""
        ends = join(CLIENT, BRIDGE, sport.to_bytes(2, "big"), port.to_bytes(2, "big"))
        packet = bytearray(tcp.emit(ends, 1, 1, ACK))
        packet[1] = dscp << 2
        verdict = self.datapath.on_packet(bytes(packet), 1000)
        return verdict.action is Action.SEND and verdict.packets[0][16:20] == SERVER


def ends_of(packets: list[bytes]) -> set[tuple[bytes, bytes]]:
    """Source and destination of resets."""
    found = set()
    for octets in packets:
        segment = Segment(look(octets))
        assert segment.flags & RST
        found.add((segment.packet.src, segment.packet.dst))
    return found


@pytest.mark.parametrize("text", [
    WEB + TLS, TLS + WEB, WEB.replace('"web"', '"other"'), WEB + "wscale = 3\n",
])
def test_flows_of_what_stays_go_on(text: str) -> None:
    bench = Bench(WEB)
    bench.enter(5000)

    assert bench.serve(text) == []
    assert bench.passes_on(5000)
    state = next(each for each in bench.datapath.services.values() if each.config.port == 80)
    assert state.config in services(text)


def test_a_service_that_is_gone_ends_its_flows_on_both_sides_and_no_other() -> None:
    bench = Bench(WEB + TLS)
    bench.enter(5000)
    bench.enter(5001, 443)

    packets = bench.serve(WEB)

    assert ends_of(packets) == {(VIP, CLIENT), (CLIENT, SERVER)}
    assert bench.passes_on(5000)
    assert not bench.passes_on(5001, 443, dscp=7)
    assert len(bench.datapath.flows) == 1


@pytest.mark.parametrize("old, new", [("8080", "8081"), ('"web"', '"web"\ndscp = 11')])
def test_another_server_or_dscp_ends_what_is_translated(old: str, new: str) -> None:
    bench = Bench(WEB)
    bench.enter(5000)

    assert ends_of(bench.serve(WEB.replace(old, new))) == {(VIP, CLIENT), (CLIENT, SERVER)}

    assert len(bench.datapath.flows) == 0


def test_the_room_that_is_told_is_that_of_the_configuration_that_runs() -> None:
    bench = Bench(WEB)

    bench.datapath.configure(replace(config.read(Table("x.toml", tomllib.loads(
        'interface = "eth0"\naddress = "192.0.2.20"\n' + WEB))), max_flows=7))

    limit, = (each for each in bench.datapath.samples() if each.name == "flows_limit")
    assert limit.value == bench.datapath.max_flows == 7
