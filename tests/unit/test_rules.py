"""Which packets the balancer's rules bring to its queue."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from balancer import config
from balancer.keys.request import KeySpec
from balancer.rules import rules
from common.engine.firewall import Rule

VIP = IPv4Address("192.0.2.1")
CONFIG = config.Config(interface="eth0", services=(config.Service(
    name="web", vip=VIP, port=80, dscp=3, key=KeySpec.parse("source"),
    backends=(config.Backend(1, VIP + 1, 1),)),))


def test_while_nobody_listens_only_what_is_for_a_vip_is_lost() -> None:
    made = rules(CONFIG)

    queued = [rule for rule in made if rule.queue is not None]
    assert {rule.destination for rule in queued if not rule.bypass} == {str(VIP)}
    assert all(rule.destination is None for rule in queued if rule.bypass)
    assert len(queued) > 1


def test_what_must_not_be_answered_does_not_reach_the_queue() -> None:
    made = rules(CONFIG)

    served = made.index(Rule("prerouting", CONFIG.queue, "eth0", destination=str(VIP),
                             protocol="tcp", dport=80))
    dropped = [rule.source for rule in made[:served] if rule.drop]
    for source in ("0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", str(VIP)):
        assert any(IPv4Address(source) in IPv4Network(net) for net in dropped)
    assert not any(IPv4Address("10.66.1.2") in IPv4Network(net) for net in dropped)


def test_fragments_and_icmp_errors_are_queued_at_a_rate() -> None:
    made = rules(CONFIG)

    for place, rule in enumerate(made):
        if rule.queue is None or rule.drop or not (rule.fragment or rule.icmp_type):
            continue
        assert rule.limit
        if rule.destination:  # what is told the host itself passes
            assert made[place + 1] == replace(rule, limit=None, drop=True)
    assert made[-2].bypass


def test_with_a_lifetime_nothing_waits_for_a_daemon_that_is_dead() -> None:
    made = rules(replace(CONFIG, lifetime_ms=1000))

    assert all(rule.bypass for rule in made if rule.queue is not None and not rule.drop)
    assert {rule.source for rule in made if rule.drop} == {
        "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", str(VIP)}


def test_a_limit_stands_before_what_becomes_of_the_packet() -> None:
    rule = Rule("prerouting", 33, protocol="icmp", icmp_type=3, limit=1000)

    assert rule.nft() == ("ip protocol icmp icmp type 3 limit rate 1000/second burst 100 packets "
                          "queue num 33")
    assert rule.iptables() == ["-p icmp --icmp-type 3 -m limit --limit 1000/second "
                               "--limit-burst 100 -j NFQUEUE --queue-num 33"]
    assert replace(rule, drop=True, limit=None).nft() == "ip protocol icmp icmp type 3 drop"
    assert replace(rule, drop=True, limit=None).iptables() == ["-p icmp --icmp-type 3 -j DROP"]
