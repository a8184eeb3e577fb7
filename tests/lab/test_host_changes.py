"""Changes to a host, and that they are put back whatever ended the program."""

import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns import inside, python, rules, state

from common.engine import firewall, host, lock
from common.engine.firewall import Rule
from common.engine.host import Host
from common.engine.lock import Locks
from common.settings import ConfigError
from lab.node import Node, wait_until
from lab.topology import BALANCER, VIP, Lab

FWMARK = "net/ipv4/tcp_fwmark_accept"
RULES = [
    Rule("prerouting", 7, "eth1", destination=VIP, protocol="tcp", dport=80),
    Rule("output", None, mark=9),
]
OTHER_RULES = [Rule("output", 7, source=VIP)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as network:
        yield network


@pytest.fixture
def node(lab: Lab, monkeypatch, tmp_path: Path) -> Iterator[Node]:
    """The balancer's host, entered, with a journal directory of its own. Left as it was found."""
    monkeypatch.setattr(host, "RUN", tmp_path / "run")
    before = state(lab.balancer)
    with inside(lab.balancer):
        yield lab.balancer
        after, journals = state(lab.balancer), list((tmp_path / "run").glob("*"))
        host.Host("test", 7).recover()  # should the test have failed half way
        host.Host("test", 0).recover()
    assert (after, journals) == (before, [])


def change_all(changes: Host) -> None:
    changes.set_sysctl(FWMARK, "1")
    changes.install_rules(RULES)
    changes.add_address("eth1", VIP)


def text(node: Node) -> str:
    return "\n".join(state(node))


def has_vip(node: Node) -> bool:
    return VIP in host.addresses_of("eth1")


def test_every_change_is_made_and_put_back(node: Node) -> None:
    before = state(node)
    changes = Host("test", 7)

    change_all(changes)
    changed = text(node)
    changes.undo()

    assert f"{VIP}/32" in changed
    assert "net.ipv4.tcp_fwmark_accept = 1" in changed
    assert "L3DSR-TEST-7-PRE" in changed or "l3dsr_test_7" in changed
    assert state(node) == before


def test_the_journal_names_a_change_before_it_is_made(node: Node, monkeypatch) -> None:
    noted = []

    def look(owner: str, rules: list[Rule]) -> None:
        (journal,) = host.RUN.glob("*.json")
        noted.extend(json.loads(journal.read_text())["changes"])
        raise firewall.FirewallError("no")

    for way in firewall.WAYS.values():
        monkeypatch.setattr(way, "install", look)
    changes = Host("test", 7)

    with pytest.raises(firewall.FirewallError):
        changes.install_rules(RULES)

    assert noted[0] == {"kind": "firewall", "owner": "test-7", "way": "nftables"}
    changes.undo()


def test_what_a_killed_instance_left_is_undone(node: Node, caplog) -> None:
    change_all(Host("test", 7))  # and no more is heard of it
    changes = Host("test", 7)

    changes.recover()

    left = text(node)
    assert not has_vip(node)
    assert "net.ipv4.tcp_fwmark_accept = 0" in left
    assert "undoing the changes that a killed test left" in caplog.text
    changes.undo()


def test_rules_of_a_killed_instance_stay_until_new_ones_replace_them(node: Node) -> None:
    change_all(Host("test", 7))
    changes = Host("test", 7)

    before = rules(node)
    changes.recover()
    kept = rules(node)
    changes.install_rules(OTHER_RULES)
    replaced = rules(node)
    changes.undo()

    assert kept == before
    assert "dport 80" not in str(replaced)
    assert VIP in str(replaced)


def test_rules_are_gone_even_if_the_next_start_gets_no_further(node: Node) -> None:
    change_all(Host("test", 7))
    changes = Host("test", 7)

    changes.recover()
    changes.undo()

    assert rules(node) == []


def test_a_killed_instance_with_another_queue_is_undone_too(node: Node) -> None:
    before = state(node)
    change_all(Host("test", 8))
    changes = Host("test", 7)

    changes.recover()

    assert state(node) == before


def test_two_killed_instances_with_one_sysctl_are_both_undone(node: Node) -> None:
    before = state(node)
    for number in (8, 9):
        Host("test", number).set_sysctl(FWMARK, "1")

    Host("test", 7).recover()

    assert state(node) == before


def test_an_instance_that_still_runs_is_left_alone(node: Node) -> None:
    running, locks = Host("test", 8), Locks()
    locks.take(running.owner_name)
    change_all(running)
    before = state(node)

    Host("test", 7).recover()

    assert state(node) == before
    running.undo()
    locks.release()


def test_a_shared_sysctl_is_put_back_by_the_last_one(node: Node) -> None:
    first, second = Host("test", 8), Host("test", 9)
    first.set_sysctl(FWMARK, "1")
    second.set_sysctl(FWMARK, "1")

    first.undo()
    between = text(node)
    second.undo()

    assert "tcp_fwmark_accept = 1" in between
    assert "tcp_fwmark_accept = 0" in text(node)


def test_a_sysctl_that_was_right_already_stays(node: Node) -> None:
    node.run(["sysctl", "-qw", "net.ipv4.tcp_fwmark_accept=1"])
    changes = Host("test", 7)

    changes.set_sysctl(FWMARK, "1")
    changes.undo()

    after = text(node)
    node.run(["sysctl", "-qw", "net.ipv4.tcp_fwmark_accept=0"])
    assert "tcp_fwmark_accept = 1" in after


@pytest.mark.parametrize("length", [24, 32])
def test_a_vip_that_was_there_stays(node: Node, length: int) -> None:
    node.run(["ip", "addr", "add", f"{VIP}/{length}", "dev", "eth1"])
    changes = Host("test", 7)

    changes.add_address("eth1", VIP)
    changes.undo()

    after = text(node)
    node.run(["ip", "addr", "del", f"{VIP}/{length}", "dev", "eth1"])
    assert f"{VIP}/{length}" in after


def test_a_journal_of_an_earlier_namespace_with_this_number_is_not_believed(node: Node) -> None:
    node.run(["ip", "addr", "add", f"{VIP}/32", "dev", "eth1"])
    changes = Host("test", 7)
    host.RUN.mkdir()
    (host.RUN / f"test-7.{node.inode}.json").write_text(json.dumps({
        "namespace": 1,
        "changes": [{"kind": "address", "interface": "eth1", "address": VIP}],
    }))

    changes.recover()

    after = text(node)
    node.run(["ip", "addr", "del", f"{VIP}/32", "dev", "eth1"])
    changes.undo()
    assert f"{VIP}/32" in after


def test_what_cannot_be_undone_is_tried_again_later(node: Node, monkeypatch, caplog) -> None:
    changes = Host("test", 7)
    change_all(changes)

    def refuse(owner: str) -> None:
        raise firewall.FirewallError("the lock is taken")

    with monkeypatch.context() as patch:
        for way in firewall.WAYS.values():
            patch.setattr(way, "remove", refuse)
        changes.undo()
    left, vip_left = rules(node), has_vip(node)
    changes.undo()

    assert "cannot undo" in caplog.text
    assert "dport 80" in str(left)
    assert not vip_left  # the rest was undone all the same


def test_an_interface_that_is_gone_needs_no_undoing(node: Node, caplog) -> None:
    node.run(["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"])
    changes = Host("test", 7)
    node.run(["ip", "link", "set", "gone0", "up"])
    changes.add_address("gone0", VIP)
    changes.set_sysctl("net/ipv4/conf/gone0/arp_ignore", "1")
    node.run(["ip", "link", "del", "gone0"])

    changes.undo()

    assert [record for record in caplog.records if record.levelno == logging.ERROR] == []


def test_an_interface_with_a_new_name_is_undone_by_that(node: Node) -> None:
    def rename(old: str, new: str) -> None:
        node.run(["ip", "link", "set", old, "down"])
        node.run(["ip", "link", "set", old, "name", new, "up"])

    arp_ignore = ["sysctl", "-n", "net.ipv4.conf.wan0.arp_ignore"]
    changes, later = Host("test", 7), Host("test", 7)
    change_all(changes)
    changes.set_sysctl("net/ipv4/conf/eth1/arp_ignore", "1")

    rename("eth1", "wan0")
    changes.follow("eth1", "wan0")
    followed, set_value = rules(node), node.run(arp_ignore)
    later.recover()  # which knows the journal alone
    undone, undone_value = host.addresses_of("wan0"), node.run(arp_ignore)
    rename("wan0", "eth1")

    assert "wan0" in str(followed)
    assert "eth1" not in str(followed)
    assert (set_value, undone_value) == ("1\n", "0\n")
    assert undone == [BALANCER]
    later.undo()


def test_neighbours_are_told_where_the_vip_is_now(lab: Lab, node: Node) -> None:
    lab.client.run(["ip", "neigh", "replace", VIP, "lladdr", "02:00:00:00:00:99", "dev", "eth1",
                    "nud", "stale"])
    mac = node.run(["cat", "/sys/class/net/eth1/address"]).strip()
    changes = Host("test", 7)

    changes.add_address("eth1", VIP)

    wait_until(lambda: mac in lab.client.run(["ip", "neigh", "show", VIP]), 2, "the client knows")
    changes.undo()


def test_a_sysctl_that_may_not_be_set_is_refused_beforehand(node: Node, monkeypatch) -> None:
    monkeypatch.setattr(host.os, "access", lambda path, mode: False)

    with pytest.raises(ConfigError) as refused:
        host.check_sysctls("file.toml", {FWMARK: "1"})

    assert str(refused.value) == (
        "file.toml: net.ipv4.tcp_fwmark_accept = '0': expected 1, or the right to set it: "
        "sysctl -w net.ipv4.tcp_fwmark_accept=1"
    )
    host.check_sysctls("file.toml", {FWMARK: "0"})


def test_addresses_are_seen(node: Node) -> None:
    assert host.addresses_of("eth1") == [BALANCER]
    assert host.is_local(BALANCER)
    assert not host.is_local(VIP)


# --- firewalls ---


def working_ways() -> list[firewall.Way]:
    found = [way for way in firewall.WAYS.values() if not way.missing()]
    assert found
    return found


def test_each_way_replaces_its_rules_and_leaves_others_alone(node: Node) -> None:
    before = state(node)
    for way in working_ways():
        other = [Rule("output", None, mark=77)]
        way.install("other-1", other)
        with_other = state(node)

        way.install("packetbridge-65535", RULES)
        once = state(node)
        way.install("packetbridge-65535", RULES)
        twice = state(node)
        way.remove("packetbridge-65535")
        way.remove("packetbridge-65535")
        removed = state(node)
        way.remove("other-1")

        assert once == twice != with_other
        assert removed == with_other
        assert state(node) == before


def test_rules_of_a_killed_instance_made_another_way_are_removed(node: Node, monkeypatch) -> None:
    ways = working_ways()
    with monkeypatch.context() as patch:
        patch.setattr(firewall, "WAYS", {ways[-1].name: ways[-1]})
        Host("test", 7).install_rules(RULES)
    changes = Host("test", 7)

    changes.recover()
    name = changes.install_rules(OTHER_RULES)
    replaced = rules(node)
    changes.undo()

    assert name == ways[0].name
    assert "dport 80" not in str(replaced)


# --- locks ---


def test_a_name_is_taken_once_and_its_holder_is_known(lab: Lab, node: Node) -> None:
    holder = node.popen(python(
        "from common.engine.lock import Locks; locks = Locks(); locks.take('vip/x'); input()"
    ), stdin=subprocess.PIPE)
    wait_until(lambda: lock.is_taken("vip/x"), 5, "it has the name")

    with pytest.raises(lock.Taken) as taken:
        Locks().take("vip/x")
    with inside(lab.client):
        elsewhere = lock.is_taken("vip/x")
    holder.kill()
    holder.wait()

    assert taken.value.pid == holder.pid
    assert not elsewhere
    Locks().take("vip/x")


def test_a_name_stays_known_however_often_one_asks(node: Node) -> None:
    locks = Locks()
    locks.take("vip/y")

    asked = [lock.is_taken("vip/y") for _ in range(300)]
    locks.release()

    assert all(asked)
    assert not lock.is_taken("vip/y")
