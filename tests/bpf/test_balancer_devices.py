"""Interfaces that lose the frames of programs, bonds, and NICs that hide VLAN tags."""

import socket
from collections.abc import Iterator

import pytest

from balancer.paths import Paths
from balancer.routes import RouteWatch
from common.bpf import links
from common.bpf.links import Link, Mode
from common.bpf.objects import Object
from common.engine.devices import Devices, strips_tags
from lab.node import PATIENCE, Process
from lab.topology import Lab
from tests.bpf.test_balancer_frames import add_vlan, queued, serve, start_digests, upload
from tests.lab.netns import inside

BRIDGE, OWN = "192.168.36.20", "192.168.36.11"


@pytest.fixture
def lab(tiny: Object, own_bpffs: None) -> Iterator[Lab]:
    """A lab whose balancer's eth1 takes frames: its peer has a program, too."""
    tiny.set_frags("count", True)
    tiny.load()
    with Lab(backends=1) as network:
        link = _give_peer_a_program(network, tiny, "p-balancer")
        yield network
        link.close()


def _give_peer_a_program(lab: Lab, tiny: Object, port: str) -> Link:
    with inside(lab.node("switch")):
        link, _ = links.attach_xdp(tiny.program("count"), socket.if_nametoindex(port), Mode.NATIVE)
    return link


def _add_second_way(lab: Lab, kind: str) -> str:
    """Another interface of the balancer's, to a network that backend1 is in. Returns: its name."""
    lab.balancer.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"])  # each its own address
    lab._connect(lab.balancer, "eth2", lab.switch, "p-balancer2")
    lab.switch.run(["ip", "link", "set", "p-balancer2", "master", "br0"])
    name = "eth2"
    if kind == "bridge":
        name = "br2"
        lab.balancer.run(["ip", "link", "add", name, "type", "bridge", "forward_delay", "0"])
        lab.balancer.run(["ip", "link", "set", "eth2", "master", name])
    elif kind == "macvlan":
        name = "mac2"
        lab.balancer.run(["ip", "link", "add", "link", "eth2", "name", name, "type", "macvlan"])
    lab.balancer.run(["ip", "link", "set", name, "up"])
    lab.balancer.run(["ip", "addr", "add", f"{OWN}/24", "dev", name])
    lab.backend1.run(["ip", "addr", "add", f"{BRIDGE}/24", "dev", "eth1"])
    return name


def _serve_by_second_way(lab: Lab) -> Process:
    backend = lab.backends[0]
    start_digests(backend, backend.server)
    lab.start_bridge(backend, "--engine", "portable", "--address", BRIDGE)
    return lab.start_balancer("--backend", f"{BRIDGE},id=1", "--engine", "fast", "--xdp", "native",
                              defaults=False)


def _needs_a_kernel_that_tells(lab: Lab) -> None:
    with inside(lab.balancer):
        devices = Devices()
        is_told = all(device.is_told for device in devices.all())
        devices.close()
    if not is_told:
        pytest.skip("this kernel does not tell which interfaces take frames")


@pytest.mark.parametrize("kind", ["veth", "bridge", "macvlan"])
def test_what_cannot_be_redirected_goes_through_the_portable_engine(lab: Lab, kind: str) -> None:
    name = _add_second_way(lab, kind)
    balancer = _serve_by_second_way(lab)

    sent, received = upload(lab, 300_000)

    assert sent == received
    assert f"{name} takes no frames that are redirected to it" in balancer.log()
    assert queued(lab.balancer) > 50


def test_what_can_be_redirected_is(lab: Lab, tiny: Object) -> None:
    _needs_a_kernel_that_tells(lab)
    _add_second_way(lab, "veth")
    link = _give_peer_a_program(lab, tiny, "p-balancer2")
    balancer = _serve_by_second_way(lab)

    sent, received = upload(lab, 3_000_000)

    assert sent == received
    assert "takes no frames" not in balancer.log()
    assert queued(lab.balancer) < 100, "of thousands"
    link.close()


def test_native_is_refused_where_what_is_sent_back_is_lost() -> None:
    with Lab(backends=1) as network:
        _needs_a_kernel_that_tells(network)
        process = network.start_balancer("--engine", "fast", "--xdp", "native", ready=False)

        assert process.popen.wait(PATIENCE * 20) == 2
        assert "auto or generic: what a program sends by eth1 is lost" in process.log()


def test_tags_that_are_taken_off_before_a_program_sees_them_refuse_it() -> None:
    with Lab(backends=1) as network:
        add_vlan(network)
        network.balancer.run(["ethtool", "-K", "eth1", "rxvlan", "on"])
        refused = network.start_balancer("--engine", "fast", ready=False)
        code = refused.popen.wait(PATIENCE * 20)
        portable = network.start_balancer("--engine", "auto")
        portable.stop()
        network.balancer.run(["ethtool", "-K", "eth1", "rxvlan", "off"])

        fast = network.start_balancer("--engine", "fast")

        assert code == 2
        remedy = "`ethtool -K eth1 rxvlan off` ends that"
        assert "tags of its VLANs (eth1.5) off before a program sees them" in refused.log()
        assert remedy in portable.log()
        assert "behind the fast one" in fast.log()


def test_whether_tags_are_taken_off_is_what_ethtool_says() -> None:
    with Lab(backends=0) as network, inside(network.balancer):
        found = []
        for state in ("on", "off"):
            network.balancer.run(["ethtool", "-K", "eth1", "rxvlan", state])
            found.append(strips_tags("eth1"))

        assert found == [True, False]
        assert not strips_tags("lo")


def test_a_bond_is_the_same_device_as_its_slaves() -> None:
    with Lab(backends=1) as network:
        _add_bond(network)
        serve(network, "--interface", "bond0")

        sent, received = upload(network, 3_000_000)

        assert sent == received
        assert queued(network.balancer) < 100, "of thousands"
        with inside(network.balancer):
            paths = Paths([socket.inet_aton("192.168.33.20")])
            for interface in ("bond0", "eth1"):
                watch = RouteWatch(paths, paths.set_routes, interface)
                watch.look_up()
                assert paths[socket.inet_aton("192.168.33.20")].route.is_here


def _add_bond(lab: Lab) -> None:
    """eth1 in a bond, which takes its address over."""
    try:
        lab.balancer.run(["ip", "link", "add", "bond0", "type", "bond", "mode", "active-backup"])
    except RuntimeError as error:
        pytest.skip(f"no bonds here: {error}")
    lab.balancer.run(["ip", "link", "set", "eth1", "down"])
    lab.balancer.run(["ip", "addr", "flush", "dev", "eth1"])
    lab.balancer.run(["ip", "link", "set", "eth1", "master", "bond0"])
    lab.balancer.run(["ip", "link", "set", "bond0", "up"])
    lab.balancer.run(["ip", "addr", "add", "192.168.33.11/24", "dev", "bond0"])


def test_kinds_of_interfaces_are_told_apart(lab: Lab) -> None:
    _needs_a_kernel_that_tells(lab)
    _add_second_way(lab, "macvlan")
    with inside(lab.balancer):
        devices = Devices()
        found = {device.name: (device.kind, device.takes_frames) for device in devices.all()}
        devices.close()

    assert found["eth1"] == ("veth", True)
    assert found["eth2"] == ("veth", False)
    assert found["mac2"] == ("macvlan", False)
