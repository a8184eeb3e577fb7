"""The frames that the balancer's program meets: in the driver or after it, tagged, and jumbo."""

import hashlib
import os
import socket

import pytest

from common.bpf import links
from common.bpf.links import Mode
from common.bpf.objects import Object
from lab.node import Node, Process
from lab.topology import VIP, Lab
from tests.lab.netns import inside

DIGEST_SERVER = """
import hashlib, http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
http.server.ThreadingHTTPServer((sys.argv[1], 80), Handler).serve_forever()
"""


def start_digests(backend: Node, address: str) -> None:
    """A server that tells the digest of what is put there."""
    server = backend.start("digests", ["python3", "-c", DIGEST_SERVER, address])
    server.wait_for_listener(address, 80)


def serve(lab: Lab, *flags: str) -> Process:
    """One such server, its bridge, and the balancer. Returns: the balancer."""
    backend = lab.backends[0]
    start_digests(backend, backend.server)
    lab.start_bridge(backend, "--engine", "portable")
    return lab.start_balancer("--engine", "fast", *flags)


def upload(lab: Lab, length: int, vip: str = VIP) -> tuple[str, str]:
    """Put a file to the VIP. Returns: its digest, and what the server says it is."""
    path = lab.directory / "upload"
    path.write_bytes(os.urandom(length))
    answer = lab.client.curl(f"http://{vip}/upload", "-T", str(path), timeout_s=120)
    return hashlib.sha256(path.read_bytes()).hexdigest(), answer.strip()


def queued(node: Node) -> int:
    """How many packets the portable engine has had."""
    return int(node.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).split()[7])


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("mode", list(Mode), ids=lambda mode: mode.value)
def test_uploads_arrive_whole(tiny: Object, mode: Mode, mtu: int) -> None:
    tiny.set_frags("count", True)
    tiny.load()
    with Lab(backends=1, mtu=mtu) as lab:
        with inside(lab.node("switch")):  # a veth sends frames if its peer has a program, too
            port = socket.if_nametoindex("p-balancer")
            link, _ = links.attach_xdp(tiny.program("count"), port, Mode.NATIVE)
        process = serve(lab, "--xdp", mode.value)

        sent, received = upload(lab, 3_000_000)

        assert sent == received
        assert f"({mode.value} XDP)" in process.log()
        assert queued(lab.balancer) < 100, "of thousands"
        link.close()


def test_coalesced_segments_arrive_whole() -> None:
    with Lab(backends=1, offloads=True) as lab:
        serve(lab)

        sent, received = upload(lab, 30_000_000)

        assert sent == received


def test_a_service_in_a_vlan_is_served() -> None:
    with Lab(backends=1) as lab:
        add_vlan(lab)
        backend = lab.backends[0]
        start_digests(backend, "192.168.44.30")
        lab.start_bridge(backend, "--interface", "eth1.5", "--vip", "3=192.168.44.10:80",
                         "--server", "192.168.44.30:80", defaults=False)
        lab.start_balancer("--interface", "eth1.5", "--vip", "192.168.44.10",
                           "--backend", "192.168.44.20,id=1", "--engine", "fast", defaults=False)

        sent, received = upload(lab, 3_000_000, "192.168.44.10")

        assert sent == received
        assert queued(lab.balancer) < 100, "of thousands"


def test_tagged_frames_pass_the_program() -> None:
    with Lab(backends=1) as lab:
        add_vlan(lab)
        serve(lab)

        lab.client.run(["ping", "-c1", "-W5", "192.168.44.11"])


def add_vlan(lab: Lab) -> None:
    """A second network, 192.168.44.0/24, on the same wires in VLAN 5."""
    ends = {"client": ["1"], "balancer": ["11"], "backend1": ["20", "30"]}
    for name, hosts in ends.items():
        node = lab.node(name)
        try:
            node.run(["ip", "link", "add", "link", "eth1", "name", "eth1.5", "type", "vlan",
                      "id", "5"])
        except RuntimeError as error:
            pytest.skip(f"no VLANs here: {error}")
        node.run(["ip", "link", "set", "eth1.5", "up"])
        for host in hosts:
            node.run(["ip", "address", "add", f"192.168.44.{host}/24", "dev", "eth1.5"])
