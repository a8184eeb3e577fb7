"""The bridge's programs before its portable data path, one packet at a time, by test runs.

What a program changes is its verdict; what it leaves alone is the portable data path's, as on a
host, where it comes up by the queue.
"""

import ipaddress
from random import Random
from typing import Any
from unittest import mock

from common.bpf.objects import TC_ACT_REDIRECT, TC_ACT_UNSPEC, SkBuff
from common.cluster.cookie import Secrets
from common.flow import guesses
from common.settings.table import Table
from common.verdict import Event, Verdict, send
from common.wire import five_tuple, tcp
from common.wire.tcp import RST
from packetbridge import config as bridge_config
from packetbridge.datapath import Datapath
from packetbridge.offload.beside import Beside
from packetbridge.offload.splice import Splice
from tests.bpf.loaded import shared

_ETHERNET = bytes(12) + b"\x08\x00"


class UntimedBeside(Beside):
    """Whose flows do not live by the kernel's time."""

    def touch_live(self, splice: Splice, now_ms: int) -> None:
        """Not at all."""


class Spliced(Datapath):
    """A data path with its programs. carried: packets that these have translated."""

    def __init__(self, case: dict[str, Any]) -> None:
        config = bridge_config.read(Table("case.toml", case["config"]))
        foreign = frozenset(
            ipaddress.IPv4Address(server).packed for server in case.get("foreign_servers", ())
        )
        local = [service for service in config.services if service.server.packed not in foreign]
        # they have another time
        with shared(), mock.patch.object(guesses, "MAX_GUESSES", 1 << 30):
            self._programs = Splice(config, local, budgets=None)
        self._local_ends = {service.server.packed + service.server_port.to_bytes(2, "big")
                            for service in local}
        self._mark = config.mark
        self.carried = 0
        super().__init__(
            config, Secrets(*(bytes.fromhex(secret) for secret in case["secrets"])),
            random=Random(1), foreign_servers=foreign,
        )
        self._beside = self.offload = UntimedBeside(config, self, [self._programs])

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict:
        """As Datapath."""
        if len(packet) < 20:
            return super().on_packet(packet, now_ms)
        is_answer = packet[12:16] + packet[20:22] in self._local_ends
        name, mark, reason = (
            ("on_egress", self._mark, Event.TO_CLIENT) if is_answer
            else ("on_ingress", 0, Event.TO_SERVER)
        )
        program = self._programs.program(name)
        run = program.test_run(_ETHERNET + packet, SkBuff(mark=mark))
        translated = run.data[len(_ETHERNET):]
        if run.retval == TC_ACT_UNSPEC and translated != packet:
            self.carried += 1
            self.counters[reason] += 1
            self._keep_alive(packet, is_answer, now_ms)
            return send(reason, translated[:int.from_bytes(translated[2:4])])
        assert run.retval in (TC_ACT_UNSPEC, TC_ACT_REDIRECT)
        assert translated == packet, "a packet that goes up must be as it came"
        return super().on_packet(packet, now_ms)

    def _keep_alive(self, packet: bytes, is_answer: bool, now_ms: int) -> None:
        """The programs note the kernel's time, which is not the case's."""
        segment = tcp.checked(packet)
        if is_answer:
            key = five_tuple.reverse(segment.five_tuple)
        else:
            service = next(state for state in self.services.values()
                           if (state.config.dscp, state.vip_port)
                           == (segment.packet.tos >> 2, segment.dport))
            key = five_tuple.join(
                segment.packet.src, service.server, segment.sport, service.server_port
            )
        flow = self._beside.learn(key, now_ms)
        assert flow is not None, "the programs have a flow that the table has not"
        is_reset = segment.flags & RST and (is_answer or segment.seq == flow.client_acked)
        self.splice.note_seen(flow, bool(is_reset), now_ms)

    def close(self) -> None:
        """Unload the programs."""
        self._programs.close()
