"""The bridge's effects: the rules, two sysctls, the queue, the sockets."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from random import SystemRandom

from common.bpf import BpfError
from common.bpf.build import BuildError
from common.engine import daemon, host, log
from common.engine.guarding import Guarded
from common.engine.host import Host
from common.settings import ConfigError
from common.settings.host import check_secret
from packetbridge.config import Config, Service, first_own
from packetbridge.control import make_views
from packetbridge.datapath import Datapath
from packetbridge.live import LiveBridge, claims_of
from packetbridge.offload import fast
from packetbridge.offload.adopted import AdoptedFlows
from packetbridge.offload.beside import Beside
from packetbridge.probes.source import Known, ProbeSource
from packetbridge.rules import foreign_servers, rules
from packetbridge.senders import Senders

PROGRAM = "packetbridge"
logger = logging.getLogger(__name__)

# With these, the server's sockets inherit the mark of the SYN that opened them (ip-sysctl.rst).
_SYSCTLS = {"net/ipv4/tcp_fwmark_accept": "1", "net/ipv4/fwmark_reflect": "1"}


def run(config: Config, load: Callable[[], Config]) -> int:
    """Serve until SIGTERM or SIGINT. Returns: the exit code.

    load: the configuration, as it is written whenever it is called; in a thread.

    Raises: ConfigError, before anything on the host is changed.
    """
    secrets = check_secret(config.file, config.secret_file).keys_at(time.time())
    address = _own_address(config)
    config = replace(config, address=address)
    host.check_sysctls(config.file, _SYSCTLS)
    log.set_up(config.log_level, config.log_format)
    foreign = foreign_servers(config.services)
    for server in sorted(foreign):
        logger.info("%s is not an address of this host; assuming a server behind it, such as a "
                    "container", server)
    engine = fast.prepare(config, foreign)
    datapath = Datapath(
        config, secrets, random=SystemRandom(),
        foreign_servers=frozenset(server.packed for server in foreign),
    )
    beside = Beside(config, datapath, engine.parts)
    if engine.parts:
        datapath.offload = beside
    counted = _count_adopted(engine.adopted(), datapath)
    known = Known(config, lambda: engine.choices, foreign, address.packed)
    probes = [ProbeSource(address, config.probe_port, known, lambda: datapath.secrets)
              ] if config.probe_port else []

    def on_served(foreign: Collection[IPv4Address]) -> None:
        known.foreign = foreign
        for each in counted:
            each.follow(engine.adopted())

    def change(changes: Host) -> str:
        for name, value in _SYSCTLS.items():
            changes.set_sysctl(name, value)
        way = changes.install_rules(rules(config, foreign, engine.spliced(), engine.adopted()))
        engine.attach(changes)
        beside.restore()
        for probe in probes:
            probe.open()
        choices = "; ".join(map(str, engine.choices))
        return f"ready: {choices}; at {config.address}, portable engine by {way}"

    senders = Senders(
        config.mark, frozenset(service.server.packed for service in config.services))
    return daemon.serve(
        PROGRAM, config, datapath, senders, claims_of(config.services), change,
        LiveBridge(config, load, datapath, engine, senders, on_served),
        last_words=datapath.on_shutdown, lasting=engine if engine.parts else None,
        sources=[source for probe in probes for source in probe.sources],
        views=make_views(datapath, beside, lambda: engine.choices),
        guarded=Guarded(config.interface, hooks=[part.hooks for part in engine.parts]),
    )


def detach(config: Config) -> int:
    """Take the fast engine off, and undo what an ended instance changed. Returns: the exit code.

    Raises: ConfigError while an instance runs.
    """
    return daemon.undo(PROGRAM, config, fast.Fast(config, (), ()))


def _count_adopted(services: Sequence[Service], datapath: Datapath) -> list[AdoptedFlows]:
    """Have the connections counted that are the stack's, if there can be some and the kernel can.
    """
    if not services:
        return []
    try:
        counted = AdoptedFlows(services)
    except (BpfError, BuildError) as error:
        logger.warning("adopted connections are not counted: %s", str(error).splitlines()[0])
        return []
    datapath.observers.append(counted.samples)
    return [counted]


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
