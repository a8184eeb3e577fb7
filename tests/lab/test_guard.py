"""What is taken from under the programs is put right, said once and counted; and all is undone."""

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from netns import inside, state
from scapy.layers.l2 import ARP, Ether
from traffic import ALONE, URL

from common.bpf import pins
from common.bpf.links import Link
from lab.node import Node, wait_until
from lab.topology import BALANCER, VIP, Lab, bridge_address, server_address

PATIENCE_S = 20
VIP_AT_ETH1, VIP_AT_LO = ["addr", "del", f"{VIP}/32", "dev", "eth1"], [
    "addr", "del", f"{VIP}/32", "dev", "lo"]


class Site:
    """A lab with the pair at work: one backend, so that whatever fails there is seen."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.start_nginx(lab.backend1)
        self.hosts = {"balancer": lab.balancer, "packetbridge": lab.backend1}
        self.before = {name: numberless(node) for name, node in self.hosts.items()}
        self.programs = {"packetbridge": lab.start_bridge(lab.backend1),
                         "balancer": lab.start_balancer()}

    def works(self) -> bool:
        """Whether a new connection is served."""
        try:
            return "backend1" in self.lab.client.curl(URL, *ALONE, timeout_s=2)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False

    def repairs(self, name: str, what: str) -> float:
        return self.programs[name].metrics()[f'l3dsr_{name}_repairs_total{{what="{what}"}}']

    def mends(self, name: str, what: str, line: str, fault: Callable[[Node], object]) -> None:
        """A fault is put right: said in one line, counted as one, and connections work again."""
        program = self.programs[name]
        count, said = self.repairs(name, what), len(program.log())

        fault(self.hosts[name])
        wait_until(lambda: self.repairs(name, what) > count, PATIENCE_S, f"{what} is counted")
        wait_until(self.works, PATIENCE_S, "connections work again")

        assert len(re.findall(line, program.log()[said:])) == 1, program.log()[said:]
        # a look between the steps of a change to an interface finds it down, and then up again
        most = 2 if what == "interface" else 1
        assert count < self.repairs(name, what) <= count + most
        assert " ERROR " not in program.log()[said:]


@pytest.fixture(scope="module", params=["portable", "adopt"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Lab(pair=request.param, backends=1, clients=2) as lab:
        made = Site(lab)
        wait_until(made.works, PATIENCE_S, "the pair works")
        yield made


def numberless(node: Node) -> list[str]:
    """A host's state, whatever the numbers of its interfaces."""
    return sorted(re.sub(r"^\d+: ", "", line) for line in state(node))


def ip(*words: str) -> Callable[[Node], object]:
    return lambda node: node.run(["ip", *words])


def remake(lab: Lab) -> Callable[[Node], None]:
    """Delete a host's interface, and make another one of its name."""
    def act(node: Node) -> None:
        port = f"p-{node.name}"
        node.run(["ip", "link", "del", "eth1"])
        lab._connect(node, "eth1", lab.switch, port)
        lab.switch.run(["ip", "link", "set", port, "master", "br0"])
        addresses = [BALANCER] if node is lab.balancer else [bridge_address(1), server_address(1)]
        for address in addresses:
            node.run(["ip", "addr", "add", f"{address}/24", "dev", "eth1"])
        for neighbour in (lab.client, lab.balancer, lab.backend1):
            neighbour.run(["ip", "neigh", "flush", "dev", "eth1"])  # its MAC is another one now

    return act


@pytest.mark.parametrize("flush", [["nft", "flush", "ruleset"], ["iptables", "-t", "raw", "-F"]],
                         ids=lambda words: words[0])
def test_rules_that_were_flushed(site: Site, flush: list[str]) -> None:
    """On both hosts at the same time."""
    with ThreadPoolExecutor(2) as pool:
        mended = [pool.submit(site.mends, name, "rules",
                              "firewall rules were gone: installed again",
                              lambda node: node.run(flush)) for name in site.programs]
    for each in mended:
        each.result()


def test_a_vip_that_was_removed(site: Site) -> None:
    site.mends("balancer", "address", f"{VIP} on eth1 had been removed: added again",
               ip(*VIP_AT_ETH1))


@pytest.mark.parametrize("name", ["balancer", "packetbridge"])
def test_an_interface_that_was_down(site: Site, name: str) -> None:
    program = site.programs[name]

    site.hosts[name].run(["ip", "link", "set", "eth1", "down"])
    program.wait_for("eth1 is down, or has no carrier: no packets until that ends", PATIENCE_S)

    site.mends(name, "interface", "eth1 was down: it is up again",
               ip("link", "set", "eth1", "up"))


@pytest.mark.parametrize("name", ["balancer", "packetbridge"])
def test_an_interface_with_another_name(site: Site, name: str) -> None:
    def rename(node: Node, old: str, new: str) -> None:
        for words in (["down"], ["name", new], ["up"]):
            node.run(["ip", "link", "set", new if words == ["up"] else old, *words])

    site.mends(name, "interface", 'followed; the next start needs interface = "wan0"',
               lambda node: rename(node, "eth1", "wan0"))
    site.mends(name, "interface", 'followed; the next start needs interface = "eth1"',
               lambda node: rename(node, "wan0", "eth1"))


@pytest.mark.parametrize("name", ["balancer", "packetbridge"])
def test_an_interface_that_was_deleted_and_made_anew(site: Site, name: str) -> None:
    site.mends(name, "interface", "eth1 was deleted and made anew", remake(site.lab))


def test_sysctls_that_another_program_has_set(site: Site) -> None:
    site.mends("packetbridge", "sysctl",
               r"another has set net\.ipv4\.fwmark_reflect = 0: 1 again",
               lambda node: node.run(["sysctl", "-qw", "net.ipv4.fwmark_reflect=0"]))


def test_what_only_adopting_bridges_have(site: Site) -> None:
    if site.lab.pair != "adopt":
        pytest.skip("the VIP is on lo only where connections are adopted")
    site.mends("packetbridge", "address", f"{VIP} on lo had been removed: added again",
               ip(*VIP_AT_LO))


def detach(owner: str, which: str = "") -> Callable[[Node], None]:
    """Take an instance's programs off the interface. which: those whose links' names contain it."""
    def act(node: Node) -> None:
        with inside(node):
            own = pins.Pins(owner)
            for link in own.links():
                if which in link:
                    Link.open_pinned(own.link_path(link)).detach()

    return act


DETACHED = "the program at eth1 was detached: attached again"


@pytest.mark.parametrize("name, owner", [("balancer", "balancer-33"),
                                         ("packetbridge", "packetbridge-adopt-34")])
def test_a_program_that_was_detached(site: Site, name: str, owner: str) -> None:
    if site.lab.pair == "portable":
        pytest.skip("there is none")
    site.mends(name, "program", DETACHED, detach(owner))


def test_one_of_the_programs_that_splice() -> None:
    with Lab(pair="splice", backends=1) as lab:
        site = Site(lab)
        for which in ("ingress", "egress"):
            site.mends("packetbridge", "program", DETACHED,
                       detach("packetbridge-splice-34", which))


def test_a_vip_that_another_host_takes(site: Site) -> None:
    lab, balancer = site.lab, site.programs["balancer"]
    count, mac = site.repairs("balancer", "vip_conflict"), _mac(lab.client2)

    lab.client2.run(["ip", "addr", "add", f"{VIP}/32", "dev", "eth1"])
    _announce(lab.client2, VIP)
    wait_until(lambda: site.repairs("balancer", "vip_conflict") > count, PATIENCE_S, "defended")
    wait_until(lambda: _mac(lab.balancer) in lab.client.run(["ip", "neigh", "show", VIP]),
               PATIENCE_S, "the client knows who has the VIP")
    defended = site.repairs("balancer", "vip_conflict")
    balancer.kill()
    site.programs["balancer"] = lab.start_balancer()  # its VIP is there, and not asked for
    lab.client2.run(["ip", "addr", "del", f"{VIP}/32", "dev", "eth1"])

    assert defended == count + 1
    assert f"VIP on another host: {VIP} is also at {mac}; it is defended" in balancer.log()


def test_a_vip_that_another_host_has_is_not_taken(site: Site) -> None:
    node = site.lab.client2
    before = state(node)

    refused = site.lab.start_balancer(node=node, ready=False)
    refused.popen.wait(PATIENCE_S)

    assert refused.popen.returncode == 2
    assert (f"command line: vip = '{VIP}': expected an address that no other host has: "
            f"{_mac(site.lab.balancer)} has it, on eth1") in refused.log()
    assert state(node) == before
    assert site.works()


def test_a_vip_that_balancers_share_is_taken_by_each_and_not_defended(site: Site) -> None:
    shared = site.lab.start_balancer("--vip-shared", "true", node=site.lab.client2)

    _announce(site.lab.balancer, VIP)
    counts = shared.metrics()
    shared.stop()

    assert counts['l3dsr_balancer_repairs_total{what="vip_conflict"}'] == 0
    assert "is also at" not in shared.log()


def test_a_next_hop_that_does_not_answer(site: Site) -> None:
    lab, balancer, hop = site.lab, site.programs["balancer"], bridge_address(1)
    gauge = f'l3dsr_balancer_next_hop_up{{address="{hop}"}}'
    wait_until(lambda: balancer.metrics().get(gauge) == 1, PATIENCE_S, "it is up")

    said = len(balancer.log())

    lab.switch.run(["ip", "link", "set", "p-backend1", "down"])
    lab.balancer.run(["ip", "neigh", "flush", "dev", "eth1"])
    wait_until(lambda: balancer.metrics()[gauge] == 0, PATIENCE_S, "it is silent")
    lab.switch.run(["ip", "link", "set", "p-backend1", "up"])
    wait_until(lambda: balancer.metrics()[gauge] == 1, PATIENCE_S, "it answers")
    wait_until(site.works, PATIENCE_S, "connections work again")

    news = balancer.log()[said:]
    assert f"next hop {hop} on eth1 does not answer ARP, so packets to {hop} are lost" in news
    assert f"next hop {hop} answers again" in news


def test_afterwards_the_hosts_are_as_before(site: Site) -> None:
    for program in site.programs.values():
        program.stop()

    for name, node in site.hosts.items():
        assert numberless(node) == site.before[name]


def _announce(node: Node, address: str) -> None:
    frame = Ether(src=_mac(node), dst="ff:ff:ff:ff:ff:ff") / ARP(
        op="is-at", hwsrc=_mac(node), psrc=address, hwdst="ff:ff:ff:ff:ff:ff", pdst=address)
    with inside(node), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(("eth1", 0))
        link.send(bytes(frame))


def _mac(node: Node) -> str:
    return node.run(["cat", "/sys/class/net/eth1/address"]).strip()
