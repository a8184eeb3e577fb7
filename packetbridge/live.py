"""Another configuration for a bridge that runs.

A service that is configured no more is served for `drain_timeout`, handoffs included: balancers may
not have heard yet. Then its connections are reset. A service whose server or DSCP is another one
keeps the connections that the host's own stack has; those that the bridge translates are reset.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address

from common.engine import clock
from common.engine.claims import Claim
from common.engine.firewall import Rule
from common.engine.host import Host
from common.engine.reload import Refused
from common.settings import COMMAND_LINE
from common.settings.emit import emit
from common.settings.host import check_secret
from common.settings.plan import RESTART
from packetbridge.config import Config, Service
from packetbridge.datapath import Datapath
from packetbridge.offload import adopt
from packetbridge.offload.fast import Choice, Fast
from packetbridge.plan import plan_of
from packetbridge.rules import foreign_servers, rules
from packetbridge.senders import Senders

_LOOPBACK = "lo"


def claims_of(services: Sequence[Service]) -> list[Claim]:
    """Each VIP and port, and each server: another bridge's rules would take the same packets."""
    ends = dict.fromkeys(
        (key, f"{address}:{port}")
        for service in services
        for key, address, port in (("vip", service.vip, service.port),
                                   ("server", service.server, service.server_port))
    )
    return [Claim(f"packetbridge/{key}/{end}", key, end, f"a {key} of its own")
            for key, end in ends]


class LiveBridge:
    """As reload.Live. running: the configuration that runs; its address is known.

    leaving: services that are configured no more, and until when they are served (monotonic).
    foreign: servers that are not on this host.
    """

    def __init__(
        self, running: Config, load: Callable[[], Config], datapath: Datapath, engine: Fast,
        senders: Senders, on_served: Callable[[Collection[IPv4Address]], None],
    ) -> None:
        """load: the configuration, as it is written now.

        on_served: called when others are, with the servers that are not on this host.
        """
        self.running = running
        self.datapath, self.engine, self.senders = datapath, engine, senders
        self.leaving: dict[Service, float] = {}
        self.foreign = foreign_servers(running.services)
        self._load, self._on_served = load, on_served

    @property
    def served(self) -> tuple[Service, ...]:
        """All whose packets come here."""
        return (*self.running.services, *self.leaving)

    def read(self, whole: bool) -> "Change":
        """As reload.Live."""
        loaded = self._load()
        loaded = replace(loaded, address=loaded.address or self.running.address)
        check_secret(loaded.file, loaded.secret_file)
        plan = plan_of(self.running, loaded)
        refused = [str(change) for change in plan.restarts
                   if change.key != "max_flows" or self.engine.parts]
        if refused:
            raise Refused(refused)
        leaving = self._leaving(loaded)
        wanted = (*loaded.services, *leaving)
        foreign = foreign_servers(wanted)
        choices = self.engine.choose(loaded, wanted, foreign)
        modes = self.engine.modes
        missing = [f"service {choice.service.name}: {choice.mode} with programs ({RESTART})"
                   for choice in choices
                   if choice.engine == "fast" and choice.mode not in modes]
        if missing:
            raise Refused(missing)
        return Change(self, loaded, plan.lines, leaving, choices, foreign)

    def watched(self) -> tuple[Sequence[str], Sequence[str]]:
        """As reload.Live."""
        is_watched = self.running.watch and self.running.file != COMMAND_LINE
        return [self.running.file] if is_watched else [], []

    def emit(self) -> str:
        """As reload.Live."""
        return emit(self.running)

    def tidy(self) -> "Tidying | None":
        """As reload.Live."""
        now_s = time.monotonic()
        over = [service for service, until_s in self.leaving.items() if until_s <= now_s]
        if not over:
            return None
        for service in over:
            del self.leaving[service]
        return self.serve([choice for choice in self.engine.choices
                           if choice.service not in over])

    def serve(self, choices: Sequence[Choice]) -> "Tidying":
        """In the loop: let data path and programs serve these. Returns: what has left."""
        before = self.engine.choices
        services = [choice.service for choice in choices]
        servers = {service.server.packed for service in services}
        foreign = frozenset(server.packed for server in self.foreign)
        packets = self.datapath.serve(services, foreign, clock.now_ms())
        for packet in packets:
            self.senders.send(packet)
        self.senders.servers = frozenset(servers)
        self.engine.serve(choices)
        self._on_served(self.foreign)
        return Tidying(self, before)

    def _leaving(self, loaded: Config) -> dict[Service, float]:
        """What goes on for a while; nothing that is in the way of what is configured."""
        until_s = time.monotonic() + loaded.drain_timeout_ms / 1000
        ends = {service.endpoint for service in loaded.services}
        dscps = {service.dscp for service in loaded.services}
        leaving = {**dict.fromkeys(self.running.services, until_s), **self.leaving}
        return {service: end_s for service, end_s in leaving.items()
                if service.endpoint not in ends and service.dscp not in dscps
                and loaded.drain_timeout_ms}


class Change:
    """As reload.Change."""

    def __init__(
        self, live: LiveBridge, loaded: Config, lines: tuple[str, ...],
        leaving: dict[Service, float], choices: Sequence[Choice], foreign: set[IPv4Address],
    ) -> None:
        self.lines = lines
        self.file, self.secret_file = loaded.file, loaded.secret_file
        self._live, self._loaded, self._leaving, self._choices = live, loaded, leaving, choices
        self._foreign = foreign
        held = {claim.lock for claim in claims_of(live.served)}
        self.claims: Sequence[Claim] = [
            claim for claim in claims_of(loaded.services) if claim.lock not in held]
        self.released: Sequence[str] = ()
        self._left: Tidying | None = None

    def begin(self) -> None:
        """As reload.Change; the kernel knows the ways."""

    @property
    def is_ready(self) -> bool:
        """As reload.Change."""
        return True

    def before(self, host: Host) -> None:
        """As reload.Change."""
        host.install_rules(_rules(self._loaded, [*self._live.engine.choices, *self._choices]))
        for vip in _adopted_vips(self._choices) - _adopted_vips(self._live.engine.choices):
            host.add_address(_LOOPBACK, vip)

    def apply(self) -> None:
        """As reload.Change."""
        live = self._live
        live.running, live.leaving, live.foreign = self._loaded, self._leaving, self._foreign
        self._left = live.serve(self._choices)
        self.released = self._left.locks
        live.datapath.configure(self._loaded)
        live.engine.configure(self._loaded)

    def after(self, host: Host) -> None:
        """As reload.Change."""
        if self._left is not None:
            self._left.on_host(host)


class Tidying:
    """As reload.Tidying. before: how services were served until now."""

    def __init__(self, live: LiveBridge, before: Sequence[Choice]) -> None:
        self._config, self._now = live.running, list(live.engine.choices)
        held = {claim.lock for claim in claims_of(live.served)}
        self.locks: Sequence[str] = [
            claim.lock for claim in claims_of([choice.service for choice in before])
            if claim.lock not in held]
        self._vips = _adopted_vips(before) - _adopted_vips(self._now)
        ends = {choice.service.endpoint for choice in self._now}
        self._ended = [choice.service for choice in before
                       if choice.mode == "adopt" and choice.service.endpoint not in ends]

    def on_host(self, host: Host) -> None:
        """As reload.Tidying."""
        adopt.reset_clients(self._ended)
        host.install_rules(_rules(self._config, self._now))
        for vip in self._vips:
            host.remove_address(_LOOPBACK, vip)


def _adopted_vips(choices: Sequence[Choice]) -> set[str]:
    return {str(choice.service.vip) for choice in choices if choice.mode == "adopt"}


def _rules(config: Config, choices: Sequence[Choice]) -> list[Rule]:
    """For all services that are served in these ways."""
    services = tuple(dict.fromkeys(choice.service for choice in choices))
    return rules(
        replace(config, services=services), foreign_servers(services),
        [choice.service for choice in choices
         if (choice.mode, choice.engine) == ("splice", "fast")],
        [choice.service for choice in choices if choice.mode == "adopt"])
