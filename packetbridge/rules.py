"""The rules of the host's firewall that bring packets to the bridge."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from common.bpf.allowance import BUDGETS
from common.engine import firewall, host
from common.engine.firewall import Rule
from common.wire import icmp
from packetbridge.config import Config, Service


def foreign_servers(services: Iterable[Service]) -> set[IPv4Address]:
    """Servers that are not this host's, but are reached through it, as containers are."""
    servers = {service.server for service in services}
    return {server for server in servers if not host.is_local(str(server))}


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
    return firewall.handed_over(made) if config.lifetime_ms else list(dict.fromkeys(made))
