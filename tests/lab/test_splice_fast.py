"""Splicing by programs on real traffic: they open, carry and close a flow by themselves."""

import hashlib
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from netns import inside, python, state
from traffic import download, large_file

from common.bpf.maps import Map
from common.bpf.pins import Pins
from lab.node import Node, Process
from lab.topology import VIP, Lab, program, wait_until

URL = f"http://{VIP}"
SPLICE = ("--engine", "fast", "--mode", "splice")


def start(lab: Lab, *flags: str) -> tuple[Process, list[Process]]:
    """The pair with splicing bridges. Returns: balancer and bridges."""
    for backend in lab.backends:
        lab.start_nginx(backend)
    bridges = lab.start_bridges(*SPLICE, *flags)
    return lab.start_balancer(), bridges


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One backend, with nothing running."""
    with Lab(backends=1) as network:
        yield network


def attached(node: Node) -> list[str]:
    """The hooks of a host where programs of ours are."""
    with inside(node):
        return Pins("packetbridge-splice-34").links()


def queued(node: Node) -> int:
    """How many packets the portable engine has had."""
    row = node.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).split()
    return int(row[7])


@pytest.mark.parametrize("offloads", [False, True], ids=["wire", "offloads"])
def test_a_download_hardly_meets_the_portable_engine(offloads):
    with Lab(backends=1, offloads=offloads) as lab:
        start(lab)
        expected = large_file(lab, 100_000_000)

        assert download(lab) == expected

        assert queued(lab.backend1) < 500  # of thousands


def test_an_upload_arrives_octet_for_octet(lab):
    start(lab)
    content = os.urandom(20_000_000)
    source = lab.directory / "upload"
    source.write_bytes(content)

    lab.client.curl(f"{URL}/upload/it", "-T", str(source), timeout_s=120)

    uploaded = list(lab.directory.glob("nginx-*/upload/it"))
    assert [path.read_bytes() == content for path in uploaded] == [True]
    assert queued(lab.backend1) < 500


@pytest.mark.parametrize("offloads", [False, True], ids=["wire", "offloads"])
def test_a_request_of_several_segments_does_not_meet_the_portable_engine(offloads):
    with Lab(backends=1, offloads=offloads) as lab:
        start(lab)
        before = queued(lab.backend1)

        for number in range(20):
            answer = lab.client.curl(f"{URL}/{number}", "-H", f"x-long: {'y' * 6000}")
            assert "backend1" in answer

        assert queued(lab.backend1) - before <= 2


def test_a_server_that_is_not_there_refuses_at_once(lab):
    """What the programs do not open, the portable engine asks for again, and answers."""
    lab.start_bridge(lab.backend1, *SPLICE)
    lab.start_balancer()

    code = lab.client.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{exitcode}", "-m", "20",
                           f"{URL}/"], check=False)

    assert code.strip().endswith("56")  # reset by the peer


def test_a_connection_that_the_client_has_forgotten_costs_its_successor_no_timeout(lab):
    """The server says once that it has it, and no more for half a second (RFC 5961 §10)."""
    start(lab)
    lab.client.run(["iptables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST",
                    "-j", "DROP"])
    lab.backend1.run(["iptables", "-A", "INPUT", "-p", "tcp", "--syn"])
    twice = (
        "import socket, struct, sys\n"
        "for _ in range(2):\n"
        "    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "    s.bind(('', 4567)); s.connect((sys.argv[1], 80))\n"
        "    s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(s.recv(4096)[:15])\n"
        "    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        "    s.close()\n"
    )

    answers = lab.client.run(python(twice, VIP))

    assert answers.count("200 OK") == 2
    syns = lab.backend1.run(["iptables", "-nvxL", "INPUT"]).splitlines()[2].split()[0]
    # the second: the programs', the portable engine's, and one when it has ended the first
    assert int(syns) == 1 + 3


def test_half_close_keeps_the_reply_coming(lab):
    """nginx ends a long reply when its client has closed, so this server is another one."""
    server = (
        "import socket, sys; s = socket.create_server((sys.argv[1], 80)); "
        "print('listens', flush=True); c = s.accept()[0]\n"
        "while c.recv(65536): pass\n"
        "c.sendall(bytes(range(250)) * 40_000)"
    )
    client = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 80)); "
        "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); s.shutdown(socket.SHUT_WR); "
        "reply = b''.join(iter(lambda: s.recv(65536), b'')); "
        "print(reply == bytes(range(250)) * 40_000)"
    )
    lab.backend1.start("server", python(server, lab.backend1.server)).wait_for("listens")
    lab.start_bridge(lab.backend1, *SPLICE)
    lab.start_balancer()

    answer = lab.client.run(python(client, VIP))

    assert answer.strip() == "True"
    assert queued(lab.backend1) < 500  # of thousands


@pytest.mark.parametrize("sysctls", [
    ["net.ipv4.tcp_timestamps=0"],
    ["net.ipv4.tcp_sack=0"],
    ["net.ipv4.tcp_timestamps=0", "net.ipv4.tcp_sack=0", "net.ipv4.tcp_window_scaling=0"],
], ids=["no timestamps", "no SACK", "none of them"])
@pytest.mark.parametrize("side", ["client", "backend1"])
def test_options_that_one_side_has_not_cost_nothing(lab, side, sysctls):
    start(lab)
    lab.node(side).run(["sysctl", "-qw", *sysctls])
    expected = large_file(lab)

    assert download(lab) == expected


def test_a_narrow_link_on_the_path_makes_itself_known_by_icmp():
    with Lab(backends=1, path_mtu=1300) as lab:
        start(lab)
        expected = large_file(lab)

        assert download(lab) == expected


@pytest.mark.parametrize("leg", ["client", "backend1"])
def test_loss_reordering_and_duplicates_cost_no_octet(leg):
    bad = {"loss": 0.03, "reorder": 0.02, "duplicate": 0.02, "seed": 7}
    with Lab(backends=1, impair={leg: bad}) as lab:
        start(lab)
        expected = large_file(lab, 2_000_000)

        digests = [download(lab) for _ in range(2)]

        assert digests == [expected, expected]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2], ids=lambda n: n.name)
def test_established_flows_outlive_the_bridge(lab, number):
    _, (bridge,) = start(lab)
    expected = large_file(lab, 40_000_000)
    with ThreadPoolExecutor(1) as pool:
        transfer = pool.submit(download, lab, "--limit-rate", "10M")
        wait_until(lambda: lab.client.octets("rx") > 5_000_000, 30, "the download runs")
        bridge.stop(number)
        before = lab.client.octets("rx")
        wait_until(lambda: lab.client.octets("rx") > before + 5_000_000, 30, "it goes on")
        bridge = lab.start_bridge(lab.backend1, *SPLICE, "--max-flows", "777")  # another map
        # besides, the balancer may be asking why the bridge did not answer
        assert bridge.metrics()["l3dsr_packetbridge_flows"] >= 1

        assert transfer.result(120) == expected

    assert "backend1" in lab.client.curl(f"{URL}/")


def test_a_handshake_that_is_being_replayed_outlives_the_bridge(lab):
    """The client's request and the server's answer come again, to the next bridge."""
    _, (bridge,) = start(lab)
    rule = ["OUTPUT", "-p", "tcp", "--sport", "80", "--tcp-flags", "SYN,ACK", "SYN,ACK",
            "-j", "DROP"]
    lab.backend1.run(["iptables", "-I", *rule])
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lab.client.curl, f"{URL}/", timeout_s=30)
        wait_until(lambda: bridge.metrics()["l3dsr_packetbridge_held_bytes"] > 0, 10, "it waits")
        bridge.stop(signal.SIGUSR2)
        lab.backend1.run(["iptables", "-D", *rule])
        lab.start_bridge(lab.backend1, *SPLICE)

        assert "backend1" in answer.result(60)


def test_an_interrupted_bridge_ends_its_flows_with_a_reset(lab):
    _, (bridge,) = start(lab)
    large_file(lab, 60_000_000)
    before = state(lab.backend1)
    with ThreadPoolExecutor(1) as pool:
        transfer = pool.submit(
            lab.client.run, ["curl", "-sS", "-o", "/dev/null", "-w", "%{exitcode}",
                             "--limit-rate", "10M", f"{URL}/files/large"],
            check=False, timeout_s=60,
        )
        wait_until(lambda: lab.client.octets("rx") > 5_000_000, 30, "the download runs")
        bridge.stop(signal.SIGINT)

        assert transfer.result(60).strip().endswith("56")  # reset by the peer

    assert state(lab.backend1) != before
    assert attached(lab.backend1) == []


def test_idle_flows_leave_and_busy_ones_stay(lab, tmp_path):
    config = tmp_path / "bridge.toml"
    config.write_text(
        f'interface = "eth1"\nmode = "splice"\nengine = "fast"\nsecret_file = "{lab.secret_file}"\n'
        'metrics = "127.0.0.1:9101"\n[timeouts]\nidle = 2\n'
        f'[[service]]\nvip = "{VIP}:80"\nserver = "{lab.backend1.server}:80"\n'
    )
    lab.start_nginx(lab.backend1)
    bridge = lab.start_bridge(lab.backend1, "--config", str(config), "--engine", "fast",
                              defaults=False)
    lab.start_balancer()
    large_file(lab, 60_000_000)
    idle = (
        "import socket, sys, time; s = socket.create_connection((sys.argv[1], 80)); "
        "s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); s.recv(4096); "
        "print('idle', flush=True); time.sleep(60)"
    )

    def flows() -> float:
        return bridge.metrics()["l3dsr_packetbridge_flows"]

    lab.client.start("idle", python(idle, VIP)).wait_for("idle")
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(download, lab, "--limit-rate", "8M")
        wait_until(lambda: flows() == 2, 10, "both are there")
        wait_until(lambda: flows() == 1, 20, "the idle one has left")

        assert not busy.done()
        assert busy.result(60) == hashlib.sha256((lab.files / "large").read_bytes()).hexdigest()


def test_thousands_of_short_connections_leave_both_tables_empty(lab, tmp_path):
    config = tmp_path / "bridge.toml"
    config.write_text(
        f'interface = "eth1"\nmode = "splice"\nengine = "fast"\nsecret_file = "{lab.secret_file}"\n'
        'metrics = "127.0.0.1:9101"\n[timeouts]\nidle = 4\nclosing = 1\nreset = 1\n'
        f'[[service]]\nvip = "{VIP}:80"\nserver = "{lab.backend1.server}:80"\n'
    )
    lab.start_nginx(lab.backend1)
    bridge = lab.start_bridge(lab.backend1, "--config", str(config), "--engine", "fast",
                              defaults=False)
    lab.start_balancer()

    report = lab.client.run(["wrk", "-t1", "-c50", "-d3s", "-H", "Connection: close", f"{URL}/"])

    count = int(re.search(r"(\d+) requests in", report)[1])
    assert count > 1000
    assert "Socket errors" not in report
    assert queued(lab.backend1) < count / 100  # not one packet of nearly all of them
    wait_until(lambda: bridge.metrics()["l3dsr_packetbridge_flows"] == 0, 30, "the table is empty")
    with inside(lab.backend1):
        path = Pins("packetbridge-splice-34").map_paths()["flows"]
    left = Map.open_pinned(path)
    assert list(left.items()) == []
    left.close()


def test_detach_leaves_the_host_as_it_was(lab):
    before = state(lab.backend1)
    lab.start_bridge(lab.backend1, *SPLICE).stop(signal.SIGUSR2)
    assert len(attached(lab.backend1)) == 2

    lab.backend1.run([*program("packetbridge"), "detach"])

    assert state(lab.backend1) == before
    assert attached(lab.backend1) == []
