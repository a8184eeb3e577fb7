"""The fast engine on both sides, and mixed pairs: the same requests, the same backends."""

import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from traffic import download, large_file, need_programs

from lab.topology import BALANCER, VIP, Lab, program, wait_until

URL = f"http://{VIP}"
PAIRS = [("fast", "fast"), ("fast", "portable"), ("portable", "fast")]


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    need_programs()


def start(lab: Lab, balancer: str, bridge: str):
    """nginx and bridge on every backend, and the balancer, each with its engine."""
    for backend in lab.backends:
        lab.start_nginx(backend)
    bridges = lab.start_bridges("--engine", bridge)
    return lab.start_balancer("--engine", balancer), bridges


def answers(lab: Lab, count: int = 300) -> list[list[str]]:
    """Which backend answers each of many URLs, each on a connection of its own."""
    urls = [f"{URL}/object/{number}" for number in range(count)]
    lines = lab.client.curl(*urls, "-H", "Connection: close").splitlines()
    return [line.split()[:2] for line in lines if line]


@pytest.fixture(scope="module")
def expected() -> list[list[str]]:
    """What the portable engines answer."""
    with Lab() as lab:
        start(lab, "portable", "portable")
        return answers(lab)


@pytest.mark.parametrize("engines", PAIRS, ids="-".join)
def test_every_pair_of_engines_serves_alike(engines, expected):
    with Lab() as lab:
        start(lab, *engines)
        digest = large_file(lab, 30_000_000)

        assert answers(lab) == expected
        assert download(lab) == digest


def test_the_program_decides_and_the_portable_engine_sees_hardly_anything():
    with Lab() as lab:
        balancer, _ = start(lab, "fast", "fast")

        answers(lab)

        metrics = lab.balancer.metrics
        wait_until(lambda: metrics().get(
            'l3dsr_balancer_packets_total{reason="handoff"}', 0) >= 300, 10, "all are counted")
        assert "behind the fast one" in balancer.log()


@pytest.mark.parametrize("sysctl", ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"])
def test_a_client_without_an_option_is_served(sysctl):
    with Lab() as lab:
        start(lab, "fast", "fast")
        lab.client.run(["sysctl", "-qw", f"net.ipv4.{sysctl}=0"])
        digest = large_file(lab, 10_000_000)

        assert download(lab) == digest


@pytest.mark.parametrize("leg", ["client", "balancer", "backend1"])
def test_loss_reordering_and_duplicates_cost_no_octet(leg):
    bad = {"loss": 0.05, "reorder": 0.05, "duplicate": 0.05, "seed": 3}
    with Lab(backends=1, impair={leg: bad}) as lab:
        start(lab, "fast", "fast")
        digest = large_file(lab, 2_000_000)

        assert len(answers(lab, 60)) == 60
        assert download(lab) == digest


def test_a_request_in_pieces_goes_where_the_whole_goes():
    script = (
        "import socket, sys, time; s = socket.create_connection((sys.argv[1], 80)); "
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "for octet in b'GET /object/7 HTTP/1.0\\r\\n\\r\\n':\n"
        "    s.sendall(bytes([octet])); time.sleep(0.002)\n"
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )
    with Lab() as lab:
        start(lab, "fast", "fast")
        whole = lab.client.curl(f"{URL}/object/7").split()[0]

        answer = lab.client.run(["python3", "-c", script, VIP])

        assert answer.split("\n\n")[1].split()[0] == whole


@pytest.mark.parametrize("which", ["balancer", "bridge"])
def test_a_killed_daemon_is_not_noticed(which):
    """New connections and old ones go on while there is no daemon, and when it comes back."""
    with Lab() as lab:
        balancer, bridges = start(lab, "fast", "fast")
        digest = large_file(lab, 200_000_000)
        with ThreadPoolExecutor(1) as pool:
            transfer = pool.submit(download, lab)
            wait_until(lambda: lab.client.octets("rx") > 5_000_000, 30, "the download runs")
            for process in [balancer] if which == "balancer" else bridges:
                process.kill()

            without = answers(lab, 50)
            if which == "balancer":
                lab.start_balancer("--engine", "fast")
            else:
                for backend in lab.backends:
                    lab.start_bridge(backend, "--engine", "fast")

            assert answers(lab, 50) == without
            assert len(without) == 50
            assert transfer.result(120) == digest


def test_flows_move_to_a_table_of_another_size():
    """Without timestamps nothing but the table knows where a flow belongs."""
    with Lab() as lab:
        balancer, _ = start(lab, "fast", "fast")
        lab.client.run(["sysctl", "-qw", "net.ipv4.tcp_timestamps=0"])
        digest = large_file(lab, 40_000_000)
        with ThreadPoolExecutor(1) as pool:
            transfer = pool.submit(download, lab, "--limit-rate", "10M")
            wait_until(lambda: lab.client.octets("rx") > 5_000_000, 30, "the download runs")
            balancer.stop(signal.SIGUSR2)
            balancer = lab.start_balancer("--engine", "fast", "--max-flows", "20000")

            wait_until(lambda: balancer.metrics()["l3dsr_balancer_flows"] == 1, 30, "it is found")
            assert transfer.result(120) == digest


def test_short_connections_under_load_all_succeed_and_leave_an_empty_table(tmp_path):
    config = tmp_path / "balancer.toml"
    with Lab(backends=1) as lab:
        config.write_text(
            f'interface = "eth1"\nsecret_file = "{lab.secret_file}"\n'
            '[timeouts]\nidle = 2\nhalf_closed = 2\nreset = 1\n'
            f'[[service]]\nvip = "{VIP}"\nport = 80\n'
            f'[[service.backend]]\naddress = "{lab.backend1.address}"\nid = 1\n'
        )
        lab.start_nginx(lab.backend1)
        lab.start_bridge(lab.backend1, "--engine", "fast")
        lab.start_balancer("--config", str(config), "--engine", "fast", defaults=False)

        report = lab.client.run(
            ["wrk", "-t1", "-c50", "-d2s", "-H", "Connection: close", f"{URL}/short"]
        )

        assert int(re.search(r"(\d+) requests in", report)[1]) > 1000
        assert "Socket errors" not in report
        wait_until(lambda: lab.balancer.metrics()["l3dsr_balancer_flows"] == 0, 60,
                   "the balancer's table is empty")


def test_handing_over_leaves_the_program_and_detach_the_host_as_it_was():
    with Lab(backends=1) as lab:
        before = lab.balancer.run(["ip", "-d", "link", "show", "eth1"])
        process = lab.start_balancer("--engine", "fast")
        assert "xdpgeneric" in lab.balancer.run(["ip", "-d", "link", "show", "eth1"])

        process.stop(signal.SIGUSR2)

        assert "xdpgeneric" in lab.balancer.run(["ip", "-d", "link", "show", "eth1"])
        assert VIP in lab.balancer.run(["ip", "address"])
        lab.balancer.run([*program("balancer"), "detach"])
        assert lab.balancer.run(["ip", "-d", "link", "show", "eth1"]) == before
        assert VIP not in lab.balancer.run(["ip", "address"])
        assert "L3DSR" not in lab.balancer.run(["iptables-save"])


def test_a_backend_with_another_address_on_the_wire_is_reached_there():
    with Lab(backends=1) as lab:
        start(lab, "fast", "fast")
        assert answers(lab, 1)

        lab.backend1.run(["ip", "link", "set", "eth1", "address", "02:00:00:00:00:99"])
        lab.backend1.run(["ip", "neigh", "flush", "all"])
        lab.backend1.run(["ping", "-c1", "-W5", BALANCER])  # asks for it, and is asked

        assert len(answers(lab, 20)) == 20


def test_a_new_route_to_a_backend_is_taken():
    """By a router that has been there all the time."""
    with Lab(backends=1, clients=2) as lab:
        router, address = lab.node("client2"), lab.backends[0].address
        router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0",
                    "net.ipv4.conf.eth1.send_redirects=0"])
        start(lab, "fast", "fast")
        answers(lab, 1)

        lab.balancer.run(["ip", "route", "add", f"{address}/32", "via", "192.168.33.102"])

        def take_it() -> bool:
            before = forwarded(router)
            assert len(answers(lab, 20)) == 20
            return forwarded(router) >= before + 20

        wait_until(take_it, 20, "packets take the route")


def forwarded(node) -> int:
    """How many packets a host has routed."""
    names, values = map(str.split, node.run(["cat", "/proc/net/snmp"]).splitlines()[:2])
    return int(dict(zip(names, values, strict=True))["ForwDatagrams"])
