"""The balancer's program at XDP with its maps, filled from a configuration.

Program and tables are pinned, so they go on when the daemon has ended.
"""

import socket
import time
import zlib

from balancer.config import Config, Service
from balancer.modes.split import takeover
from balancer.offload.flow_map import FlowMap
from balancer.offload.maps import (
    BACKEND,
    INDEX,
    SERVICE,
    SERVICE_KEY,
    SETTINGS,
    TRAFFIC,
    place_of,
)
from balancer.offload.requests import fill_requests
from balancer.paths import UNKNOWN, NextHop
from common.bpf import build, pins
from common.bpf.links import Mode
from common.bpf.objects import Object
from common.bpf.pins import Kept, Pins
from common.bpf.reasons import ReasonCounts
from common.cluster.cookie import Secrets

PROGRAM_NAME = "on_packet"
_CLOCK_SLACK_MS = 50
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h: moves by ticks
_TICK_MS = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1000 * (1 << 20))  # of 2^-20 ms


class Program:
    """The loaded program and its maps, filled from a configuration."""

    def __init__(self, config: Config, secrets: Secrets, instance: Pins | None = None) -> None:
        """instance: whose maps are gone on with. Raises: BpfError; build.BuildError."""
        self._config = config
        self._pins = instance
        self._next_hops: dict[int, NextHop] = {}
        self.object = Object(build.object_of("balancer", "balancer"))
        FlowMap.size(self.object, config.max_flows)
        if instance is not None:
            # flows name services by number, so they mean something to the same services only
            ends = [(str(service.vip), service.port) for service in config.services]
            layout = zlib.crc32(repr(ends).encode()) >> 1
            instance.reuse_maps(self.object, [
                Kept("flows", layout, copy=lambda old, replace: self.flows.take_over(old, replace)),
                Kept("reasons"),
            ])
        self.object.load()
        self.settings = self.object.map("settings_map", INDEX, SETTINGS)
        self.backends = self.object.map("backends", INDEX, BACKEND)
        self.flows = FlowMap(self.object)
        self.marks = self.object.map("held")
        self.held_count = self.object.shared_variable("held_count")
        self.reasons = ReasonCounts(self.object)
        self.traffic = self.object.map("traffic", INDEX, TRAFFIC)
        self.set_secrets(secrets)
        self._fill_services(config.services)
        fill_requests(self.object, config.services)

    def close(self) -> None:
        """Let go of it; what is pinned goes on."""
        for each in (self.settings, self.backends, self.flows, self.marks, self.reasons,
                     self.traffic):
            each.close()
        self.object.close()

    def set_secrets(self, secrets: Secrets, fixed_ms: int = 0) -> None:
        """Check and make cookies by these, and set the clock. fixed_ms: the time in test runs."""
        timeouts = self._config.timeouts
        self._secrets = secrets
        self._base = time.time_ns() // 1_000_000, self._tick()
        self.settings.update(0, (
            secrets.current, secrets.previous or bytes(16), 2 if secrets.previous else 1,
            *self._base, _TICK_MS, fixed_ms,
            timeouts.idle_ms, timeouts.half_closed_ms, timeouts.reset_ms,
            self._config.takeover_rate, takeover.id_shift(self._config.id_bits), self.flows.seed,
        ))

    def keep_time(self, now_ms: int) -> None:
        """Set the clock if it is wrong by more than ticks explain. now_ms: unix time."""
        base_ms, base_tick = self._base
        told_ms = base_ms + ((self._tick() - base_tick & 0xFFFFFFFF) * _TICK_MS >> 20)
        if abs(told_ms - now_ms) > _CLOCK_SLACK_MS:
            self.set_secrets(self._secrets)

    def _tick(self) -> int:
        """The kernel's tick, as the program reads it; 32 bits."""
        return self.object.program("read_tick").test_run(bytes(64)).retval & 0xFFFFFFFF

    def set_next_hop(self, service: int, backend_id: int, hop: NextHop) -> None:
        """How to reach a backend of the service of that number."""
        config = self._config.services[service]
        place = place_of(service, backend_id)
        if self._next_hops.get(place) == hop:
            return
        self._next_hops[place] = hop
        backend = next(each for each in config.backends if each.id == backend_id)
        self.backends.update(place, (
            backend.address.packed, hop.interface, hop.mtu, 1, config.dscp, hop.destination,
            hop.source,
        ))

    def attach(self) -> Mode:
        """Let the program have the packets. Returns: how. Raises: BpfError."""
        assert self._pins is not None
        pins.sweep()
        self._pins.fill_maps(self.object)
        index = socket.if_nametoindex(self._config.interface)
        program = self.object.program(PROGRAM_NAME)
        wanted = None if self._config.xdp == "auto" else Mode(self._config.xdp)
        if wanted is None and _kind(self._config.interface) == "veth":
            wanted = Mode.GENERIC  # in the driver, what it sends needs its peer's consent
        mode = self._pins.attach_xdp(program, index, wanted)
        self._pins.keep_links([f"xdp-{mode.value}-{index}"])
        self._pins.settle()
        return mode

    def _fill_services(self, services: tuple[Service, ...]) -> None:
        table = self.object.map("services", SERVICE_KEY, SERVICE)
        for number, service in enumerate(services):
            key = service.vip.packed, service.port.to_bytes(2, "big")
            table.update(key, (number, service.mss, service.wscale, service.sack,
                               service.timestamps))
            for backend in service.backends:
                self.set_next_hop(number, backend.id, UNKNOWN)
        table.close()


def _kind(interface: str) -> str | None:
    """What makes the interface: `veth`, `bond` …; None for hardware."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        link = netlink.get_links(ifname=interface)[0]
        info = link.get_attr("IFLA_LINKINFO")
        return info.get_attr("IFLA_INFO_KIND") if info else None
