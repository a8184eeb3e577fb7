"""The balancer's program at XDP with its maps, filled from a configuration.

Program and tables are pinned, so they go on when the daemon has ended.
"""

import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from balancer.config import Config, Service
from balancer.flows import timeouts_ms
from balancer.modes.split import takeover
from balancer.offload.durations import Durations
from balancer.offload.flow_map import STATE_BITS, FlowMap
from balancer.offload.maps import place_of
from balancer.offload.numbers import ServiceNumbers
from balancer.offload.requests import Encoder, Prepared, write
from balancer.offload.tracing import PROGRAM_NAME, TRACE_MAPS
from balancer.paths import UNKNOWN, NextHop
from balancer.pool.schedule import Scheduler
from common.bpf import allowance, build, lifetime, objects, pins, reasons
from common.bpf import secrets as bpf_secrets
from common.bpf.allowance import BUDGETS, TICK_LENGTH
from common.bpf.hooks import Hooks
from common.bpf.links import Mode
from common.bpf.objects import Object
from common.bpf.pins import Kept, Pins
from common.bpf.reasons import ReasonCounts
from common.cluster.cookie import Secrets
from common.cluster.service import Endpoint
from common.engine import clock
from common.flow import guesses
from common.verdict import DropReason, Event

_CLOCK_SLACK_MS = 50
_TIME_BASE = "boot"  # of the times in flows


class Program:
    """The loaded program and its maps, filled from a configuration.

    numbers: of the services, by endpoint. numbers_kept: also of those that were here before.
    hooks:   where it is; None without an instance.
    """

    def __init__(
        self, config: Config, secrets: Secrets, instance: Pins | None = None, *,
        for_tests: bool = False, budgets: Mapping[str, int] = BUDGETS,
    ) -> None:
        """instance: its pinned maps are taken over. for_tests: its time is set, not the kernel's,
        and everything may go up. budgets: as common/bpf/allowance.py.

        Raises: BpfError; build.BuildError.
        """
        self._config = config
        self._mode: Mode | None = None
        self.hooks = Hooks(instance, partial(self._attach, instance)) if instance else None
        self._for_tests = for_tests
        self._backends: dict[int, tuple[bytes, int]] = {}  # by place: address and DSCP
        self._next_hops: dict[int, NextHop] = {}
        self._cut: set[int] = set()  # places of backends whose packets go up
        self._offers: dict[int, dict[str, int]] = {}  # what SYN-ACKs say, by a service's number
        self.object = Object(build.object_of("balancer", "balancer"))
        self.object.set_variable("in_test", for_tests)
        self.object.set_variable("is_watched", for_tests)
        self.object.omit_maps(*TRACE_MAPS)
        self.object.set_variable("max_guesses", guesses.MAX_GUESSES)
        allowance.allow(self.object, None if for_tests else budgets)
        lifetime.limit(self.object, config.lifetime_ms)
        if config.hash_seed:
            self.object.set_variable("has_seed", 1)
            self.object.set_variable("hash_seed", config.hash_seed)
        FlowMap.size(self.object, config.max_flows)
        if instance is not None:
            numbers = Kept("service_numbers")
            instance.reuse_maps(self.object, [
                # flows name services by these numbers, and mean nothing without them
                Kept("flows", beside=("table", "backend_counts"),
                     meaning=f"{numbers.version(self.object)} {STATE_BITS} {_TIME_BASE}",
                     copy=lambda old, replace: self.flows.take_over(old, replace)),
                numbers,
                reasons.kept(lambda: self.reasons),
            ])
        self.object.load()
        self.settings = self.object.map("settings_map")
        self.services = self.object.map("services")
        self.backends = self.object.map("backends")
        self.vips = self.object.map("vips")
        self.flows = FlowMap(self.object)
        self.marks = self.object.map("held")
        self.held_count = self.object.shared_variable("held_count")
        self._is_busy = self.object.shared_variable("is_busy")
        self._test_ms = self.object.shared_variable("test_ms")
        self._last_reason = self.object.shared_variable("last_reason")
        self.reasons = ReasonCounts(self.object)
        self.traffic = self.object.map("traffic")
        self.durations = Durations(self.object)
        self.numbers_kept = ServiceNumbers(self.object.map("service_numbers"))
        self.numbers = self.numbers_kept.assign(
            [service.endpoint for service in config.services], self.flows.forget_service)
        self.set_secrets(secrets)
        numbered = [(self.numbers[service.endpoint], service) for service in config.services]
        self._fill_services(numbered)
        self._encoder = Encoder(self.object.btf)
        write(self.object, [(number, self._encoder.prepare(service))
                            for number, service in numbered])

    def close(self) -> None:
        """Let go of it; what is pinned goes on."""
        for each in (self.settings, self.services, self.backends, self.vips, self.flows,
                     self.marks, self.reasons, self.traffic, self.durations, self.numbers_kept):
            each.close()
        self.object.close()

    def set_secrets(self, secrets: Secrets) -> None:
        """Check and make cookies by these, and set the clocks."""
        self._secrets = secrets
        self._base = base_ms, base_tick = clock.now_ms(), self._tick()
        self._clock_offset_ms = 0 if self._for_tests else clock.offset_ms()
        self.settings.update(0, {
            "secrets": bpf_secrets.of(secrets),
            "base_ms": base_ms, "base_tick": base_tick, "tick_ms": TICK_LENGTH,
            "clock_offset_ms": self._clock_offset_ms,
            "timeouts_ms": (*timeouts_ms(self._config.timeouts), 0, 0),
            "takeover_rate": self._config.takeover_rate,
            "id_shift": takeover.id_shift(self._config.id_bits),
            "accepts_version_1": self._config.accept_version_1,
            "flow_seed": self.flows.seed,
        })

    def set_test_time(self, now_ms: int) -> None:
        """The time in test runs, unix time as well, for a program that was made for them."""
        self._test_ms[:] = now_ms.to_bytes(8, sys.byteorder)

    def last_reason(self) -> Event | DropReason:
        """In test runs, why the last packet was sent or dropped that did not go up."""
        return self.reasons.numbered[int.from_bytes(self._last_reason, sys.byteorder)]

    def keep_time(self, now_ms: int) -> None:
        """Set the clocks if one is wrong by more than ticks explain."""
        base_ms, base_tick = self._base
        told_ms = base_ms + ((self._tick() - base_tick & 0xFFFFFFFF) * TICK_LENGTH >> 20)
        set_by_ms = clock.offset_ms() - self._clock_offset_ms
        if max(abs(told_ms - now_ms), abs(set_by_ms)) > _CLOCK_SLACK_MS:
            self.set_secrets(self._secrets)

    def set_busy(self, is_busy: bool) -> None:
        """Leave the portable engine less of what can wait, or all that it may have again."""
        self._is_busy[:] = int(is_busy).to_bytes(4, sys.byteorder)

    def _tick(self) -> int:
        """The kernel's tick, as the program reads it; 32 bits."""
        return self.object.program("read_tick").test_run(bytes(64)).retval & 0xFFFFFFFF

    def configure(self, config: Config) -> None:
        """Go by these settings from now on; sizes stay."""
        self._config = config
        self.set_secrets(self._secrets)

    def set_backend(
        self, service: int, backend_id: int, address: bytes, dscp: int, hop: NextHop = UNKNOWN
    ) -> None:
        """Let the service of that number have a backend, or give it another address.

        address: 4 octets. hop: how to reach it.
        """
        place = place_of(service, backend_id)
        if self._backends.get(place) != (address, dscp) or self._next_hops[place] != hop:
            self._backends[place] = address, dscp
            self._write_backend(place, hop)

    def set_next_hop(self, service: int, backend_id: int, hop: NextHop) -> None:
        """How to reach a backend of the service of that number."""
        place = place_of(service, backend_id)
        if self._next_hops[place] != hop:
            self._write_backend(place, hop)

    def remove_backend(self, service: int, backend_id: int) -> None:
        """Know a backend no more; what is for it goes up."""
        place = place_of(service, backend_id)
        del self._backends[place], self._next_hops[place]
        self._cut.discard(place)
        self.backends.update(place, {})

    def set_scheduler(self, number: int, service: Service) -> None:
        """Choose among these backends of a service from now on."""
        self.choose_by(number, self._encoder.prepare(service))

    def prepare(self, service: Service, scheduler: Scheduler) -> Prepared:
        """What `choose_by` takes."""
        return self._encoder.prepare(service, scheduler)

    def choose_by(self, number: int, prepared: Prepared) -> None:
        """Choose by this for the service of that number from now on."""
        write(self.object, [(number, prepared)])

    def cut(self, service: int, backend_id: int, is_cut: bool) -> None:
        """Let a backend's packets go up, or not any more."""
        place = place_of(service, backend_id)
        if (place in self._cut) != is_cut:
            self._cut ^= {place}
            self._write_backend(place, self._next_hops[place])

    def traffic_of(self, service: int, backend_id: int) -> dict[str, int]:
        """What the program has sent to a backend, by the names of its counters."""
        per_cpu = self.traffic.lookup(place_of(service, backend_id))
        return {name: sum(getattr(each, name) for each in per_cpu)
                for name in ("packets", "octets", "handoffs", "unanswered")}

    def _write_backend(self, place: int, hop: NextHop) -> None:
        address, dscp = self._backends[place]
        self._next_hops[place] = hop
        self.backends.update(place, {
            "address": address, "index": hop.interface, "mtu": hop.mtu,
            "is_configured": place not in self._cut, "is_here": hop.is_here, "dscp": dscp,
            "destination": hop.destination, "source": hop.source,
        })

    def set_mss(self, number: int, service: Service, mss: int) -> None:
        """What the SYN-ACKs of the service of that number offer from now on."""
        offer = {"mss": mss, "wscale": service.wscale, "sack": service.sack,
                 "timestamps": service.timestamps}
        if self._offers.get(number) == offer:
            return
        self._offers[number] = offer
        self.vips.update(service.vip.packed, b"\1")
        self.services.update(_key_of(service), {"number": number, **offer})

    def number(self, configured: Sequence[Endpoint], endpoint: Endpoint) -> int:
        """The number of one of these services; a new one gets one. Raises: ValueError."""
        self.numbers = self.numbers_kept.assign(configured, self.flows.forget_service)
        return self.numbers[endpoint]

    def remove_service(self, service: Service, is_last: bool) -> None:
        """Answer no more for a service. is_last: whether no other has its VIP."""
        self.services.delete(_key_of(service))
        if is_last:
            self.vips.delete(service.vip.packed)
        self._offers.pop(self.numbers.pop(service.endpoint), None)

    def attach(self, wanted: Mode | None) -> Mode:
        """Let the program have the packets. wanted: None takes the first that can be had.

        Returns: how. Raises: BpfError.
        """
        pins.sweep()
        self._mode = wanted
        assert self.hooks is not None
        self.hooks.attach(socket.if_nametoindex(self._config.interface))
        assert self._mode is not None
        return self._mode

    def _attach(self, instance: Pins, index: int) -> None:
        """As Hooks has it: at first, and whenever the program was lost."""
        instance.fill_maps(self.object)
        self._mode = instance.attach_xdp(self.object.program(PROGRAM_NAME), index, self._mode)
        instance.keep_links([f"xdp-{self._mode.value}-{index}"])
        instance.settle()

    def stand_in(self, other: objects.Program | None) -> None:
        """Let another program have the packets in this one's place; None: this one again.

        Raises: BpfError.
        """
        if self.hooks is not None:
            program = other or self.object.program(PROGRAM_NAME)
            self.hooks.exchange(lambda own: own.exchange_xdp(program))

    def release_numbers(self) -> None:
        """No flow is left of services that are configured no more."""
        self.numbers_kept.release(self.numbers)

    def _fill_services(self, numbered: Iterable[tuple[int, Service]]) -> None:
        for number, service in numbered:
            self.set_mss(number, service, service.mss)
            for backend in service.backends:
                self.set_backend(number, backend.id, backend.address.packed, service.dscp)


def _key_of(service: Service) -> dict[str, bytes]:
    """As balancer/offload/bpf/maps.h:service_key."""
    endpoint = service.endpoint
    return {"vip": endpoint.address, "port": endpoint.port_octets}
