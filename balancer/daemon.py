"""The balancer's effects: the VIP, the rules, the queue, the sockets."""

import logging
from random import SystemRandom

from balancer.config import Config
from balancer.datapath import Datapath
from common import firewall, log, metrics, settings
from common.engine import Engine
from common.firewall import Rule
from common.host import Busy, Host, Locks
from common.queue import QueueError, RawSender

PROGRAM = "balancer"
logger = logging.getLogger(__name__)


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns: the exit code.

    Raises: settings.ConfigError, before anything on the host is changed.
    """
    settings.check_rights(PROGRAM)
    settings.check_interface(config.file, config.interface)
    secrets = settings.check_secret(config.file, config.secret_file)
    log.set_up(config.log_level, config.log_format)
    locks = Locks()
    host = Host(PROGRAM, config.queue)
    try:
        _lock(config, locks)
        host.recover()
        datapath = Datapath(config, secrets, random=SystemRandom())
        if config.metrics:
            metrics.serve(PROGRAM, datapath, *config.metrics)
        _serve(config, host, datapath)
    except (Busy, QueueError, firewall.FirewallError, OSError) as error:
        logger.error("%s", error)
        return 1
    finally:
        host.undo()
        locks.release()
    return 0


def _serve(config: Config, host: Host, datapath: Datapath) -> None:
    sender = RawSender(config.mark)
    engine = Engine(datapath, config.queue, lambda packet: sender)
    try:
        # Rules first: once the VIP is ours, its packets must not reach the host's stack.
        means = host.install_rules(rules(config))
        for vip in sorted({str(service.vip) for service in config.services}):
            host.add_address(config.interface, vip)
        services = ", ".join(f"{service.name} ({service.key})" for service in config.services)
        engine.run(f"ready: {services} on {config.interface}, portable engine by {means}")
    finally:
        host.undo()  # while the queue still drops what comes
        engine.close()
        sender.close()


def _lock(config: Config, locks: Locks) -> None:
    locks.take(
        f"queue/{config.queue}",
        f"another balancer or packetbridge has queue {config.queue}: stop it, or give another "
        "number with --queue",
    )
    for service in config.services:
        locks.take(
            f"vip/{service.vip}:{service.port}",
            f"another balancer on this host serves {service.vip}:{service.port}: stop it first",
        )


def rules(config: Config) -> list[Rule]:
    """Everything for a service, and ICMP errors and fragments for its VIP, to the queue."""
    made = []
    for service in config.services:
        vip = {"hook": "prerouting", "queue": config.queue, "interface": config.interface,
               "destination": str(service.vip)}
        made.append(Rule(protocol="tcp", dport=service.port, **vip))
        if not any(rule.destination == str(service.vip) and rule.fragment for rule in made):
            made.append(Rule(protocol="tcp", fragment=True, **vip))
            made.append(Rule(protocol="icmp", **vip))
    made.append(Rule("output", None, mark=config.mark))
    return made
