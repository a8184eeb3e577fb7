"""Which packets the balancer's rules bring to its queue."""

from ipaddress import IPv4Address

from balancer import config
from balancer.daemon import rules
from balancer.keys.request import KeySpec

VIP = IPv4Address("192.0.2.1")


def test_while_nobody_listens_only_what_is_for_a_vip_is_lost() -> None:
    service = config.Service(name="web", vip=VIP, port=80, dscp=3, key=KeySpec.parse("source"),
                             backends=(config.Backend(1, VIP + 1, 1),))

    made = rules(config.Config(services=(service,), interface="eth0"))

    queued = [rule for rule in made if rule.queue is not None]
    assert {rule.destination for rule in queued if not rule.bypass} == {str(VIP)}
    assert all(rule.destination is None for rule in queued if rule.bypass)
    assert len(queued) > 1
