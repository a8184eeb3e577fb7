"""The bridge's effects: the rules, two sysctls, the queue, the sockets."""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from ipaddress import IPv4Address
from random import SystemRandom

from common.bpf.allowance import BUDGETS
from common.engine import daemon, host, log
from common.engine.claims import Claim
from common.engine.firewall import Rule
from common.engine.host import Host
from common.engine.queue import RawSender
from common.settings import ConfigError
from common.settings.host import check_secret
from common.wire import icmp
from common.wire.family import dst_of
from packetbridge.config import Config, Service, first_own
from packetbridge.datapath import Datapath
from packetbridge.live import LiveBridge
from packetbridge.offload import fast
from packetbridge.offload.beside import Beside

PROGRAM = "packetbridge"
logger = logging.getLogger(__name__)

# With these, the server's sockets inherit the mark of the SYN that opened them (ip-sysctl.rst).
_SYSCTLS = {"net/ipv4/tcp_fwmark_accept": "1", "net/ipv4/fwmark_reflect": "1"}


class Senders:
    """Packets to servers leave with `mark`, which their answers inherit; those to clients with +1.

    servers: addresses, 4 octets each.
    """

    def __init__(self, mark: int, servers: frozenset[bytes]) -> None:
        """Raises: OSError."""
        self._servers = servers
        self._to_server, self._to_client = RawSender(mark), RawSender(mark + 1)

    def send(self, packet: bytes) -> int:
        """As RawSender."""
        if dst_of(packet) in self._servers:
            return self._to_server.send(packet)
        return self._to_client.send(packet)

    @property
    def failures(self) -> int:
        """As RawSender."""
        return self._to_server.failures + self._to_client.failures

    def say_failures(self) -> None:
        """As RawSender."""
        self._to_server.say_failures()
        self._to_client.say_failures()


def run(config: Config, load: Callable[[], Config]) -> int:
    """Serve until SIGTERM or SIGINT. Returns: the exit code.

    load: the configuration, as it is written whenever it is called; in a thread.

    Raises: ConfigError, before anything on the host is changed.
    """
    secrets = check_secret(config.file, config.secret_file).keys_at(time.time())
    config = replace(config, address=_own_address(config))
    host.check_sysctls(config.file, _SYSCTLS)
    log.set_up(config.log_level, config.log_format)
    foreign = _foreign_servers(config)
    engine = fast.prepare(config, foreign)
    datapath = Datapath(
        config, secrets, random=SystemRandom(),
        foreign_servers=frozenset(server.packed for server in foreign),
    )
    beside = Beside(config, datapath, engine.parts)
    if engine.parts:
        datapath.offload = beside

    def change(changes: Host) -> str:
        for name, value in _SYSCTLS.items():
            changes.set_sysctl(name, value)
        way = changes.install_rules(rules(config, foreign, engine.spliced(), engine.adopted()))
        engine.attach(changes)
        beside.restore()
        choices = "; ".join(map(str, engine.choices))
        return f"ready: {choices}; at {config.address}, portable engine by {way}"

    servers = frozenset(service.server.packed for service in config.services)
    return daemon.serve(
        PROGRAM, config, datapath, Senders(config.mark, servers), _claims(config), change,
        LiveBridge(config, load), datapath.on_shutdown, engine if engine.parts else None,
    )


def detach(config: Config) -> int:
    """Take the fast engine off, and undo what an ended instance changed. Returns: the exit code.

    Raises: ConfigError while an instance runs.
    """
    return daemon.undo(PROGRAM, config, fast.Fast(config, (), ()))


def _claims(config: Config) -> list[Claim]:
    """Each VIP and port, and each server: another bridge's rules would take the same packets."""
    ends = dict.fromkeys(
        (key, f"{address}:{port}")
        for service in config.services
        for key, address, port in (("vip", service.vip, service.port),
                                   ("server", service.server, service.server_port))
    )
    return [
        Claim(f"{PROGRAM}/{key}/{end}", key, end, f"a {key} of its own") for key, end in ends
    ]


def _own_address(config: Config) -> IPv4Address:
    """The address that balancers send to: the configured one, or the interface's first.

    Both have been looked at (packetbridge.config); it is only lost if that has changed since.
    """
    addresses = map(IPv4Address, host.addresses_of(config.interface))
    address = config.address or first_own(config.services, addresses)
    if address is None:
        raise ConfigError(config.file, "interface", config.interface,
                          "an interface with an address for the balancer to send to")
    return address


def _foreign_servers(config: Config) -> set[IPv4Address]:
    """Servers that are not this host's, but are reached through it, as containers are."""
    servers = {service.server for service in config.services}
    foreign = {server for server in servers if not host.is_local(str(server))}
    for server in sorted(foreign):
        logger.info("%s is not an address of this host; assuming a server behind it, such as a "
                    "container", server)
    return foreign


def rules(
    config: Config, foreign: set[IPv4Address], fast: Collection[Service] = (),
    adopted: Collection[Service] = (),
) -> list[Rule]:
    """Tagged packets to the bridge's address, and marked ones of the servers, to the queue.

    fast: services whose flows programs translate. What these leave alone of their servers' packets
          they turn round to come in again; only what leaves by another interface is not theirs.
    adopted: services whose connections are between the client and the VIP.
    """
    to_vips = [Rule("prerouting", None, destination=str(service.vip), protocol="tcp",
                    dport=service.port) for service in adopted]
    # most packets are these, so they come first where they cannot be tagged ones, too
    made = [rule for rule in to_vips if rule.destination != str(config.address)]
    for service in config.services:
        tagged = Rule("prerouting", config.queue, config.interface,
                      destination=str(config.address), dscp=service.dscp)
        made += [
            replace(tagged, protocol="tcp", dport=service.port),
            # more of these is not ours to drop: they may be about the host's own traffic
            replace(tagged, protocol="tcp", fragment=True, limit=BUDGETS["UP_IP"]),
            *(replace(tagged, protocol="icmp", icmp_type=error, limit=BUDGETS["UP_ICMP"])
              for error in icmp.ERRORS),
        ]
        server = Rule("output", config.queue, source=str(service.server), protocol="tcp",
                      sport=service.server_port)
        if service.server in foreign:
            made.append(replace(server, hook="prerouting", bypass=True))
            continue
        marked = replace(server, mark=config.mark)
        if service in fast:
            made.append(replace(marked, hook="prerouting", interface=config.interface))
            marked = replace(marked, other_than=config.interface)
        made.append(marked)
    made += [*to_vips, *(Rule("output", None, source=str(service.vip), protocol="tcp",
                              sport=service.port) for service in adopted)]
    if fast:
        made.append(Rule("prerouting", None, config.interface, mark=config.mark))
    for mark in (config.mark, config.mark + 1):
        made.append(Rule("output", None, mark=mark))
    made.append(Rule("prerouting", None, interface="lo", mark=config.mark))
    return list(dict.fromkeys(made))
