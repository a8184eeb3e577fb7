"""The bridge's effects: the rules, two sysctls, the queue, the sockets."""

import dataclasses
import logging
from ipaddress import IPv4Address
from random import SystemRandom

from common import firewall, host, log, metrics, settings
from common.engine import Engine, clock_ms
from common.firewall import Rule
from common.host import Busy, Host, Locks
from common.queue import QueueError, RawSender
from packetbridge.config import Config
from packetbridge.datapath import Datapath

PROGRAM = "packetbridge"
logger = logging.getLogger(__name__)

# With these, the server's sockets inherit the mark of the SYN that opened them (ip-sysctl.rst).
_SYSCTLS = ("net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect")


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns: the exit code.

    Raises: settings.ConfigError, before anything on the host is changed.
    """
    settings.check_rights(PROGRAM)
    settings.check_interface(config.file, config.interface)
    secrets = settings.check_secret(config.file, config.secret_file)
    config = dataclasses.replace(config, address=_own_address(config))
    log.set_up(config.log_level, config.log_format)
    locks = Locks()
    changes = Host(PROGRAM, config.queue)
    try:
        _lock(config, locks)
        changes.recover()
        foreign = {service.server for service in config.services
                   if not host.is_local(str(service.server))}
        datapath = Datapath(
            config, secrets, random=SystemRandom(),
            foreign_servers=frozenset(server.packed for server in foreign),
        )
        if config.metrics:
            metrics.serve(PROGRAM, datapath, *config.metrics)
        _serve(config, changes, datapath, foreign)
    except (Busy, QueueError, firewall.FirewallError, OSError) as error:
        logger.error("%s", error)
        return 1
    finally:
        changes.undo()
        locks.release()
    return 0


def _own_address(config: Config) -> IPv4Address:
    """The address that balancers send to: the configured one, or the interface's first."""
    taken = {str(service.server) for service in config.services}
    taken |= {str(service.vip) for service in config.services}
    addresses = host.addresses_of(config.interface)
    if config.address is not None:
        if str(config.address) not in addresses:
            raise settings.ConfigError(
                config.file, "address", str(config.address),
                f"an address of {config.interface}: {', '.join(addresses) or 'it has none'}",
            )
        return config.address
    for address in addresses:
        if address not in taken:
            return IPv4Address(address)
    raise settings.ConfigError(
        config.file, "interface", config.interface,
        "an interface with an IPv4 address besides the server's, for the balancer to send to",
    )


def _serve(config: Config, changes: Host, datapath: Datapath, foreign: set[IPv4Address]) -> None:
    to_server, to_client = RawSender(config.mark), RawSender(config.mark + 1)
    servers = {service.server.packed for service in config.services}
    engine = Engine(
        datapath, config.queue,
        lambda packet: to_server if packet[16:20] in servers else to_client,
    )
    try:
        for sysctl in _SYSCTLS:
            changes.set_sysctl(sysctl, "1")
        means = changes.install_rules(rules(config, foreign))
        services = ", ".join(
            f"{service.name} (DSCP {service.dscp}) to {service.server}:{service.server_port}"
            for service in config.services
        )
        engine.run(f"ready: {services}; splice, at {config.address}, portable engine by {means}")
        engine.send_all(datapath.on_shutdown(clock_ms()))
    finally:
        changes.undo()
        engine.close()
        to_server.close()
        to_client.close()


def _lock(config: Config, locks: Locks) -> None:
    locks.take(
        f"queue/{config.queue}",
        f"another balancer or packetbridge has queue {config.queue}: stop it, or give another "
        "number with --queue",
    )
    for service in config.services:
        locks.take(
            f"dscp/{service.dscp}",
            f"another packetbridge on this host takes DSCP {service.dscp}: stop it first",
        )


def rules(config: Config, foreign: set[IPv4Address]) -> list[Rule]:
    """Tagged packets to the bridge's address, and marked ones of the servers, to the queue."""
    made = []
    for service in config.services:
        tagged = {"hook": "prerouting", "queue": config.queue, "interface": config.interface,
                  "destination": str(config.address), "dscp": service.dscp}
        made += [
            Rule(protocol="tcp", dport=service.port, **tagged),
            Rule(protocol="tcp", fragment=True, **tagged),
            Rule(protocol="icmp", **tagged),
        ]
        server = {"queue": config.queue, "source": str(service.server), "protocol": "tcp",
                  "sport": service.server_port}
        if service.server in foreign:
            made.append(Rule("prerouting", bypass=True, **server))
        else:
            made.append(Rule("output", mark=config.mark, **server))
    for mark in (config.mark, config.mark + 1):
        made.append(Rule("output", None, mark=mark))
    made.append(Rule("prerouting", None, interface="lo", mark=config.mark))
    return list(dict.fromkeys(made))
