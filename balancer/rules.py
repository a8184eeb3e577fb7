"""The rules of the host's firewall that bring packets to the balancer."""

from dataclasses import replace

from balancer.config import Config
from common.bpf.allowance import BUDGETS
from common.engine import firewall
from common.engine.firewall import Rule
from common.wire import icmp

_IMPOSSIBLE_SOURCES = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")  # as common/wire/ipv4.py


def rules(config: Config) -> list[Rule]:
    """Everything for a service, and ICMP errors and fragments for its VIP, to the queue.

    And whatever is told of a narrow path, wherever it comes in: it may be about a forwarded packet.
    It may as well be about the host's own, which must not miss it while nobody listens, nor while
    more comes than the queue gets.
    """
    made = []
    for service in config.services:
        vip = Rule("prerouting", config.queue, config.interface, destination=str(service.vip))
        served = replace(vip, protocol="tcp", dport=service.port)
        limited = [
            replace(vip, protocol="tcp", fragment=True, limit=BUDGETS["UP_IP"]),
            *(replace(vip, protocol="icmp", icmp_type=error, limit=BUDGETS["UP_ICMP"])
              for error in icmp.ERRORS),
        ]
        made += [
            *(replace(served, source=source, drop=True)
              for source in (*_IMPOSSIBLE_SOURCES, str(service.vip))),
            served,
            *(each for rule in limited for each in (rule, replace(rule, limit=None, drop=True))),
        ]
    made.append(Rule("prerouting", config.queue, protocol="icmp", bypass=True,
                     icmp_type=icmp.DEST_UNREACHABLE, icmp_code=icmp.FRAGMENTATION_NEEDED,
                     limit=BUDGETS["UP_ICMP"]))
    made.append(Rule("output", None, mark=config.mark))
    return firewall.handed_over(made) if config.lifetime_ms else list(dict.fromkeys(made))
