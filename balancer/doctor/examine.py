"""Looks at everything, all bridges at a time: from a configuration to findings."""

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
from balancer.paths import HEADERS_LEN, LEAST_MTU, Paths
from balancer.pool.pool import Backend
from balancer.services import Services, ServiceState
from common.cluster.probe import Answer
from common.cluster.secrets import Secrets
from common.doctor.ask import Asker, Silence
from common.encap import dscp
from common.engine.queue import RawSender

_AT_A_TIME = 16  # bridges


class Member(NamedTuple):
    """A service with one of its backends."""

    service: ServiceState
    backend: Backend


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
            bridges = pool.map(
                lambda address: _Bridge(config, secrets, client, sender, paths).examine(
                    address, by_address[address]), by_address)
            return Findings(host.result(), tuple(bridges))
    finally:
        sender.close()


def _without_tables(config: Config) -> Config:
    """The same services, with no table to be made of their backends."""
    return replace(config, services=tuple(
        replace(service, scheduler="round-robin", hash_balance_factor=None)
        for service in config.services))


class _Bridge:
    """Looks at one bridge."""

    def __init__(
        self, config: Config, secrets: Secrets, client: bytes, sender: RawSender, paths: Paths
    ) -> None:
        self._config = config
        self._secrets = secrets
        self._client = client
        self._sender = sender
        self._paths = paths

    def examine(self, address: bytes, members: Sequence[Member]) -> OfBridge:
        """Raises: OSError."""
        path = self._paths[address]
        own = path.own_address
        name = str(IPv4Address(address))
        asker = Asker(name, self._config.probe_port, self._secrets.current,
                      str(IPv4Address(own)) if own else "")
        plain = asker.ask()
        reply = plain.reply
        served = asker.services(reply) if isinstance(reply, Answer) else ()
        dscps = {service.dscp for service in served}
        services = []
        for service, backend in members:
            configured = service.config
            tagged = asker.ask(configured.dscp << 2) if isinstance(reply, Answer) else plain
            found = OfService(
                configured.name, backend.id, f"{configured.vip}:{configured.port}",
                configured.dscp, configured.wscale, tagged)
            if own and (isinstance(reply, Silence) or (configured.dscp in dscps
                        and _is_intact(found))):
                found = found._replace(handoff=try_handoff(
                    service, backend, self._secrets, own, self._client, self._sender,
                    asker if isinstance(reply, Answer) else None))
            services.append(found)
        is_silent = isinstance(reply, Silence)
        mtu = path.mtu if path.route.mtu else 0
        return OfBridge(
            name, self._config.probe_port, plain, is_silent and pings(name), served,
            tuple(services), path.route.mtu, mtu,
            min(min(member.service.config.mss for member in members),
                max(mtu, LEAST_MTU) - HEADERS_LEN))


def _is_intact(found: OfService) -> bool:
    """Whether its DSCP arrives."""
    reply = found.tagged.reply
    return isinstance(reply, Answer) and dscp.of_tos(reply.tos) == found.dscp
