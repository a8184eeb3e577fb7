"""Looks at everything, all bridges at a time: from a configuration to findings."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Address
from random import SystemRandom
from typing import NamedTuple

from balancer.config import Config
from balancer.doctor import local
from balancer.doctor.findings import Findings, OfBridge, OfService
from balancer.doctor.handoffs import try_handoff
from balancer.doctor.path import measured, pings
from balancer.paths import HEADERS_LEN, LEAST_MTU, Path
from balancer.pool.pool import Backend
from balancer.services import Services, ServiceState
from common.cluster.probe import Answer
from common.cluster.secrets import Secrets
from common.doctor.ask import Asker, Replied, Silence
from common.encap import dscp
from common.engine.queue import RawSender

_AT_A_TIME = 16  # bridges
_BEGINS_TRIES, _BEGINS_S = 4, 0.5


class Member(NamedTuple):
    """A service with one of its backends. is_quiet: if its bridge answers, no handoff is tried."""

    service: ServiceState
    backend: Backend
    is_quiet: bool = False


class Way(NamedTuple):
    """The way to a bridge. own: this host's address on it, empty: there is none. mtu: of the first
    link, 0: not known; path_mtu: of the whole path, as measured.
    """

    own: bytes
    mtu: int
    path_mtu: int


def way_of(path: Path) -> Way:
    """What is known of it now. The kernel's route has the path's MTU once a router has told it."""
    route = path.route
    return Way(path.own_address, route.hop.mtu or route.mtu, path.mtu if route.mtu else 0)


def examine(config: Config, secrets: Secrets, client: bytes) -> Findings:
    """Look. client: an address for handoffs to come from. Raises: OSError."""
    by_address: dict[bytes, list[Member]] = {}
    for service in Services(_without_tables(config), SystemRandom()):
        for backend in service.pool:
            by_address.setdefault(backend.address, []).append(Member(service, backend))
    sender = RawSender(config.mark)
    try:
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            host = pool.submit(local.look, config, secrets, client)
            paths = measured(by_address, config.interface)
            examiner = Examiner(config.probe_port, secrets, sender)
            bridges = pool.map(
                lambda address: examiner.examine(
                    address, way_of(paths[address]), by_address[address], client), by_address)
            return Findings(host.result(), tuple(bridges))
    finally:
        sender.close()


def _without_tables(config: Config) -> Config:
    """The same services, with no table to be made of their backends."""
    return replace(config, services=tuple(
        replace(service, scheduler="round-robin", hash_balance_factor=None)
        for service in config.services))


class Examiner:
    """Looks at bridges, one in each call, in any thread."""

    def __init__(self, probe_port: int, secrets: Secrets, sender: RawSender) -> None:
        self._probe_port = probe_port
        self._secrets = secrets
        self._sender = sender

    def examine(
        self, address: bytes, way: Way, members: Sequence[Member], client: bytes | None
    ) -> OfBridge:
        """Look at a bridge. client: an address for handoffs to come from; None: that is not tried.

        Raises: OSError.
        """
        name = str(IPv4Address(address))
        asker = Asker(name, self._probe_port, self._secrets.current,
                      str(IPv4Address(way.own)) if way.own else "")
        plain = asker.ask()
        is_silent = isinstance(plain.reply, Silence)
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(pings, name) if is_silent else None
            served = asker.services(plain.reply) if isinstance(plain.reply, Answer) else ()
            dscps = {service.dscp for service in served}
            services = tuple(self._of_service(member, way, asker, plain, dscps, client)
                             for member in members)
            if is_silent and any(each.handoff and each.handoff.is_taken for each in services) \
                    and _begins_to_answer(asker):
                return self.examine(address, way, members, client)
            return OfBridge(
                name, self._probe_port, plain, answers is not None and answers.result(), served,
                services, way.mtu, way.path_mtu,
                min(min(member.service.config.mss for member in members),
                    max(way.path_mtu, LEAST_MTU) - HEADERS_LEN))

    def _of_service(
        self, member: Member, way: Way, asker: Asker, plain: Replied, dscps: set[int],
        client: bytes | None,
    ) -> OfService:
        """dscps: those of which the bridge has services."""
        service, backend, is_quiet = member
        config, answers = service.config, isinstance(plain.reply, Answer)
        tagged = asker.ask(config.dscp << 2) if answers else plain
        found = OfService(config.name, backend.id, f"{config.vip}:{config.port}", config.dscp,
                          config.wscale, tagged)
        is_silent = isinstance(plain.reply, Silence)
        may_be_taken = config.dscp in dscps and _is_intact(found) and not is_quiet
        if not way.own or not (is_silent or may_be_taken):
            return found
        return found._replace(handoff=try_handoff(
            service, backend, self._secrets, way.own, client, self._sender,
            asker if answers else None))


def _begins_to_answer(asker: Asker) -> bool:
    """Whether it has just been started: connections are taken before questions are."""
    for _ in range(_BEGINS_TRIES):
        time.sleep(_BEGINS_S)
        if not isinstance(asker.ask(tries=1).reply, Silence):
            return True
    return False


def _is_intact(found: OfService) -> bool:
    """Whether its DSCP arrives."""
    reply = found.tagged.reply
    return isinstance(reply, Answer) and dscp.of_tos(reply.tos) == found.dscp
