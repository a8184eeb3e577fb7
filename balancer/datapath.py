"""What the balancer does with a packet: finds its service, and hands it over to that one's mode.

Rules: octets, state, clock and secret in, a verdict out; nothing here blocks,
reads a clock or touches a socket. No octets raise.

Times are of a clock that nobody sets, so that no flow ends because the host's
clock is wrong; `clock_offset_ms` makes unix time of them, for cookies alone.

A data path has a flow store, in memory or in a program's map, and where there
is a program an offload beside it, which it tells what the program must know.
Neither changes what is decided.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from random import Random
from typing import Protocol

from balancer import config, metrics
from balancer.config import Config
from balancer.flows import BackendFlow, timeouts_ms
from balancer.modes.kinds import MODES
from balancer.modes.split.hold import Marks
from balancer.paths import LEAST_MTU, Paths
from balancer.pool.pool import Backend, Changes, State
from balancer.pool.schedule import Scheduler
from balancer.services import Plan, Services, ServiceState
from common.cluster.cookie import Secrets
from common.cluster.service import TCP_OCTET, key_of
from common.counters import Counters, Sample, new_counters
from common.flow.memory import MemoryStore
from common.flow.store import FlowStore
from common.histogram import Histogram
from common.metrics import FLOWS, FLOWS_EVICTED, FLOWS_LIMIT
from common.verdict import DROP, PASS, DropReason, Event, Verdict, send
from common.wire import Malformed, five_tuple, icmp
from common.wire.family import look
from common.wire.packet import ECN_MASK, TCP, Packet
from common.wire.seq import delta
from common.wire.tcp import Segment

_OCTETS_PER_MS = 1_250_000  # no client sends faster than 10 Gbit/s


class Offload(Protocol):
    """A program that decides, beside the data path, what it can decide alone."""

    @property
    def marks(self) -> Marks:
        """Flows whose packets it must not handle."""

    def before(self, now_ms: int) -> None:
        """A packet or a tick is about to be handled."""

    def on_tick(self, counters: Counters, paths: Paths, now_ms: int) -> None:
        """Keep what the program knows up to date, and add what it has counted."""

    def add_counts(self, counters: Counters) -> None:
        """Add what the program has counted since the last time."""

    def apply(
        self, service: ServiceState, changes: Changes, paths: Paths, prepared: object = None
    ) -> None:
        """Tell the program of changes to a service's backends. prepared: as `prepare` made it."""

    def add(self, service: ServiceState, paths: Paths, prepared: object) -> None:
        """Let the program serve one more; it gets its number here."""

    def remove(self, service: ServiceState) -> None:
        """Let the program know a service no more."""

    def cut(self, service: ServiceState, backend: Backend) -> None:
        """Leave the packets of a backend to the data path."""

    def configure(self, config: Config) -> None:
        """Go by these settings from now on, as far as they are not fixed at the start."""

    def prepare(self, service: config.Service, scheduler: Scheduler) -> object:
        """What the program must know to choose among these shares; in any thread."""

    def follow(self, service: ServiceState, plan: Plan) -> None:
        """Choose by what was prepared, and let go of the flows that are cut."""

    def set_secrets(self, secrets: Secrets) -> None:
        """Make and check cookies by these."""

    def handshakes(self, service: ServiceState) -> Histogram:
        """Those of a service, with those that the program has seen. In any thread."""

    def first_acks(self, backend: Backend) -> Histogram:
        """Those of a backend, with those that the program has seen. In any thread."""


class Datapath:
    """Verdicts for packets; see the module."""

    def __init__(
        self, config: Config, secrets: Secrets, *, random: Random,
        services: Services | None = None, flows: FlowStore[BackendFlow] | None = None,
        offload: Offload | None = None,
    ) -> None:
        """services, flows: where a program has them, too; else they are made here."""
        self.services = services or Services(config, random)
        self.paths = Paths(backend.address for backend in self.services.backends())
        self.flows: FlowStore[BackendFlow] = flows if flows is not None else MemoryStore(
            config.max_flows, timeouts_ms(config.timeouts), owner=attrgetter("backend"),
        )
        self.offload = offload
        self.observers: list[Callable[[], list[Sample]]] = []  # further ones, for `samples`
        self.counters = new_counters()
        marks: Marks = offload.marks if offload else set()
        self.modes = {
            kind: MODES[kind](config, secrets, self.flows, self.counters, marks)
            for kind in {service.kind for service in config.services}
        }
        self._drain_ms = config.drain_timeout_ms
        self._index()
        self._at_bridges: dict[bytes, list[Backend]] | None = None  # made when it is asked for
        self._fitted, self._narrowest = self.paths.version, self.paths.narrowest
        self.max_flows = config.max_flows
        self._secrets = secrets
        self._clock_offset_ms = 0

    @property
    def clock_offset_ms(self) -> int:
        """Unix time − the clock's by which packets are decided about."""
        return self._clock_offset_ms

    @clock_offset_ms.setter
    def clock_offset_ms(self, offset_ms: int) -> None:
        self._clock_offset_ms = offset_ms
        for mode in self.modes.values():
            mode.clock_offset_ms = offset_ms

    @property
    def secrets(self) -> Secrets:
        """Which cookies hold."""
        return self._secrets

    @secrets.setter
    def secrets(self, secrets: Secrets) -> None:
        self._secrets = secrets
        for mode in self.modes.values():
            mode.secrets = secrets
        if self.offload:
            self.offload.set_secrets(secrets)

    def on_packet(self, octets: bytes, now_ms: int) -> Verdict:
        """Decide about one IP packet.

        octets: from the IP header on; those past its total length are ignored.
        now_ms: of a clock that nobody sets.
        """
        if self.offload is not None:
            self.offload.before(now_ms)
        packet = look(octets)
        try:
            if packet.dst not in self._vips:
                verdict = self._on_narrow_path(packet, now_ms)
            elif packet.protocol == TCP:
                segment = Segment(packet)
                found = self._serving.get(packet.dst + TCP_OCTET + segment.dport)
                if found is None:
                    verdict = PASS
                else:
                    service, mode = found
                    verdict = mode.on_packet(segment, service, now_ms)
            elif packet.protocol == packet.family.icmp:
                verdict = self._on_icmp(packet)
            else:
                verdict = PASS
        except Malformed as malformed:
            verdict = DROP[malformed.reason]
        if len(octets) > self._narrowest and verdict.packets:
            verdict = self._fitted_to_paths(octets, verdict, now_ms)
        self.counters[verdict.reason] += 1
        return verdict

    def on_tick(self, now_ms: int) -> list[bytes]:
        """What time alone brings about. Returns: packets to send."""
        if self.offload:
            self.offload.before(now_ms)
        self.paths.expire(now_ms)
        self.fit_mss()
        packets = [made for mode in self.modes.values() for made in mode.on_tick(now_ms)]
        for service in self.services:
            if service.pool.is_leaving:
                self._drain(service, now_ms)
        if self.offload:
            self.offload.on_tick(self.counters, self.paths, now_ms)
        return packets

    def on_too_big(self, octets: bytes, mtu: int, now_ms: int) -> list[bytes]:
        """Answer a packet that, forwarded, exceeds the next link's MTU (RFC 1191 §4).

        octets: the packet as it arrived from the client.
        """
        return [icmp.emit_fragmentation_needed(octets, mtu, look(octets).dst)]

    def learn_path_mtu(self, backend: Backend, mtu: int, now_ms: int) -> None:
        """The path to a backend takes packets of `mtu` octets at most, as somebody has found out.

        New connections will have an MSS that fits it, for ten minutes.
        """
        self.paths.learn(backend.address, mtu, now_ms)
        self.fit_mss()

    def fit_mss(self) -> None:
        """Let each service's MSS fit the smallest path to any of its backends."""
        if self._fitted == self.paths.version:
            return
        self._fitted = self.paths.version
        self._narrowest = self.paths.narrowest
        for service in self.services:
            self._fit(service)

    def update(self, service: ServiceState, backends: Sequence[config.Backend]) -> None:
        """Give a service other backends, or other weights, while packets flow."""
        self._apply(service, service.update(backends))

    # --- another configuration, while packets flow ---

    def configure(self, config: Config) -> None:
        """Go by these settings from now on, as far as they are not fixed at the start."""
        self._drain_ms, self.max_flows = config.drain_timeout_ms, config.max_flows
        self.flows.set_bounds(config.max_flows, timeouts_ms(config.timeouts))
        for mode in self.modes.values():
            mode.configure(config)
        if self.offload:
            self.offload.configure(config)

    def add(self, service: ServiceState, prepared: object = None) -> None:
        """Serve one more. prepared: as the offload has prepared it."""
        for backend in service.pool:
            self.paths.add(backend.address)
        self._fit(service)
        if self.offload:
            self.offload.add(service, self.paths, prepared)
        else:
            service.number = self.services.free_number
        self.services.add(service)
        self._index()
        self._at_bridges = None

    def change(
        self, service: ServiceState, configured: config.Service, scheduler: Scheduler,
        prepared: object = None,
    ) -> None:
        """Let a service be configured like this. scheduler, prepared: made of its forecast."""
        self._apply(service, service.become(configured, scheduler), prepared)
        self._fit(service)

    def drain(self, service: ServiceState) -> None:
        """A service is configured no more: it goes when its flows have gone, or their time is over.

        Its new connections are reset.
        """
        self._apply(service, service.leave())

    def plan(self, service: ServiceState) -> Callable[[], Plan]:
        """How to choose by the standing that the backends have now.

        Returns: what makes the plan. That takes its time, and can be done in any thread.
        """
        version, shares = service.pool.version, service.pool.shares()
        shared, offload = service.shared(shares), self.offload

        def make() -> Plan:
            scheduler = service.schedule(shared.backends)
            prepared = offload.prepare(shared, scheduler) if offload else None
            return Plan(version, shares, scheduler, prepared)

        return make

    def follow(self, service: ServiceState, plan: Plan) -> bool:
        """Choose by a plan, unless it is too old. Returns: whether that is so."""
        if plan.version != service.pool.version:
            return False
        for backend in service.pool:
            if backend.state is State.SERVING:
                backend.is_cut = backend.id in plan.shares.cut
        service.pool.scheduler = plan.scheduler
        if self.offload:
            self.offload.follow(service, plan)
        return True

    def collect(self) -> None:
        """Let `counters` have all that is counted up to now."""
        if self.offload:
            self.offload.add_counts(self.counters)

    def samples(self) -> list[Sample]:
        """What there is to be seen besides `counters`."""
        offload = self.offload
        samples = [
            FLOWS.at(len(self.flows)),
            FLOWS_LIMIT.at(self.max_flows),
            FLOWS_EVICTED.at(self.flows.evicted),
        ]
        for mode in self.modes.values():
            samples += mode.samples()
        for observer in self.observers:
            samples += observer()
        for service in self.services:
            name = service.config.name
            samples += [metrics.MSS.at(service.mss, name),
                        metrics.HANDSHAKE_DURATION.of(
                            offload.handshakes(service) if offload else service.handshakes, name)]
        for backend in self.services.backends():
            labels = metrics.labels_of(backend)
            samples += [
                metrics.BACKEND_FLOWS.at(self.flows.count(backend), *labels),
                metrics.BACKEND_HANDOFFS.at(backend.handoffs, *labels),
                metrics.BACKEND_UNANSWERED.at(backend.unanswered, *labels),
                metrics.BACKEND_PACKETS.at(backend.packets, *labels),
                metrics.BACKEND_BYTES.at(backend.octets, *labels),
                metrics.BACKEND_FIRST_ACK.of(
                    offload.first_acks(backend) if offload else backend.first_acks, *labels,
                    step=2),
            ]
        return samples

    def _fitted_to_paths(self, octets: bytes, verdict: Verdict, now_ms: int) -> Verdict:
        """What is longer than its path carries is not sent: its client is told (RFC 1191 §4)."""
        packets: list[bytes] = []
        for made in verdict.packets:
            mtu = self.paths.mtu_to(look(made).dst)
            packets += ([made] if len(made) <= mtu
                        else self.on_too_big(octets, mtu, now_ms))
        return send(verdict.reason, *packets)

    def _on_icmp(self, packet: Packet) -> Verdict:
        """An ICMP error for the VIP reaches the backend whose segment it quotes."""
        packet.check()
        if not icmp.is_about_tcp(packet):
            return PASS
        quote = icmp.Quote(packet)
        quoted = five_tuple.split(quote.five_tuple)  # of a packet from the VIP to the client
        found = self._serving.get(key_of(quoted.src, TCP_OCTET, quoted.sport))
        if found is None or packet.dst != quoted.src:
            return PASS
        service, mode = found
        backend = mode.backend_of(quote, service)
        if backend is None:
            return DROP[DropReason.UNKNOWN_FLOW]
        if packet.ttl <= 1:
            return DROP[DropReason.TTL_EXPIRED]
        forwarded = bytearray(quote.octets)
        own_address = self.paths[backend.address].own_address
        if own_address:
            # the router that sent it may be on the way to the backend, too: its own address, coming
            # in, would be a martian there (RFC 1812 §5.3.7)
            packet.family.rewrite_src(packet.src, own_address).apply(forwarded)
        return send(Event.ICMP_FORWARDED, backend.way.wrap(forwarded))

    def _on_narrow_path(self, packet: Packet, now_ms: int) -> Verdict:
        """A router could not pass on what we had sent on: its client must hear of it, and we learn.

        The error is for the client, about the bridge. Any other one is none of our business.
        """
        if packet.fault is not None or not icmp.is_fragmentation_needed(packet):
            return PASS
        try:
            quote = icmp.Quote(packet)
        except Malformed:
            return PASS
        quoted = five_tuple.split(quote.five_tuple)  # of a packet from the client to the bridge
        if packet.dst != quoted.src:
            return PASS
        if self._at_bridges is None:
            self._at_bridges = self._find_bridges()
        for backend in self._at_bridges.get(key_of(quoted.dst, TCP_OCTET, quoted.dport), ()):
            vip = backend.service.config.vip.packed
            flow = self.flows.get(five_tuple.join(quoted.src, vip, quoted.sport, quoted.dport))
            if flow is not None and flow.backend is backend and _is_plausible(quote, flow, now_ms):
                if quote.next_hop_mtu:
                    self.learn_path_mtu(backend, quote.next_hop_mtu, now_ms)
                back = packet.family.rewrite_dst(backend.address, vip, tos_mask=ECN_MASK)
                return send(Event.ICMP_FORWARDED, icmp.emit_retold(quote, vip, back))
        return PASS

    def _apply(
        self, service: ServiceState, changes: Changes, prepared: object = None
    ) -> None:
        for backend in (*changes.new, *changes.changed):
            self.paths.add(backend.address)
        if any(changes):
            self._at_bridges = None
            self._fitted = -1
        if self.offload and (any(changes) or prepared is not None):
            self.offload.apply(service, changes, self.paths, prepared)
        if changes.gone:
            self.paths.keep(backend.address for backend in self.services.backends())

    def _drain(self, service: ServiceState, now_ms: int) -> None:
        """Let those go that are configured no more, as far as their flows and their time allow."""
        for backend in service.pool.cut(now_ms, self._drain_ms):
            if self.offload:
                self.offload.cut(service, backend)
        self._apply(service, service.pool.release(self.flows.count, now_ms))
        if service.is_leaving and not service.pool.is_leaving:
            self.services.remove(service)
            self._index()
            if self.offload:
                self.offload.remove(service)

    def _index(self) -> None:
        """Note the VIPs and, by an endpoint's key, the service and who handles its packets."""
        self._vips = self.services.vips
        self._serving = {key: (service, self.modes[service.config.kind])
                         for key, service in self.services.items()}

    def _fit(self, service: ServiceState) -> None:
        """Let a service's MSS fit the smallest path to any of its backends."""
        addresses = [backend.address for backend in service.pool]
        if addresses:
            service.mss = self.paths.mss(service.config.mss, addresses)

    def _find_bridges(self) -> dict[bytes, list[Backend]]:
        """Whose packets go to each bridge, by the endpoint that they have on the way."""
        found: dict[bytes, list[Backend]] = {}
        for backend in self.services.backends():
            port = backend.service.config.endpoint.port_octets
            end = key_of(backend.address, TCP_OCTET, port)
            found.setdefault(end, []).append(backend)
        return found


def _is_plausible(quote: icmp.Quote, flow: BackendFlow, now_ms: int) -> bool:
    """Whether an error can be about a packet of this flow: too long, and within what was sent.

    Where in its stream a client is is known only by the flow's age: off-path attackers have to
    guess a flow in its first seconds (RFC 5927 §4 asks for the same of hosts, who know better).
    """
    sent_most = (max(now_ms - flow.created_ms, 0) + 1) * _OCTETS_PER_MS
    return (quote.quoted_len > max(quote.next_hop_mtu, LEAST_MTU)
            and delta(quote.quoted_seq, flow.client_isn) <= sent_most)
