"""Adoption on real traffic: the servers' own stacks answer for the VIP."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from netns import inside, python, state, tcp_packet
from traffic import (
    ALONE,
    LARGE_LEN,
    PATIENCE_S,
    connect,
    download,
    large_file,
    request,
    wrk_meanwhile,
)

from common.bpf import features
from common.bpf.pins import Pins
from lab.node import Node, Process
from lab.topology import BALANCER, CLIENT, VIP, Lab, bridge_address, program, wait_until
from packetbridge.offload.adopt import KFUNC

pytestmark = pytest.mark.skipif(
    os.geteuid() == 0 and bool(features.missing_kfuncs(KFUNC)), reason=f"needs {KFUNC}"
)

URL = f"http://{VIP}"
ADOPT = ("--engine", "fast", "--mode", "adopt")
TAG, ACK = 3 << 2, 16


def start(lab: Lab, *flags: str, **nginx: object) -> tuple[Process, list[Process]]:
    """The pair with adopting bridges. Returns: balancer and bridges."""
    for backend in lab.backends:
        lab.start_nginx(backend, **nginx)
    bridges = lab.start_bridges(*ADOPT, *flags)
    return lab.start_balancer(), bridges


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Lab, list[Process]]]:
    """The pair at work, for tests that leave it as it is."""
    with Lab() as lab:
        yield lab, start(lab)[1]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One backend, with nothing running."""
    with Lab(backends=1) as network:
        yield network


def counted(bridges: list[Process], reason: str) -> int:
    """Packets of all bridges by what became of them."""
    name = f'l3dsr_packetbridge_packets_total{{reason="{reason}"}}'
    return int(sum(bridge.metrics().get(name, 0) for bridge in bridges))


def attached(node: Node) -> list[str]:
    """The hooks of a host where programs of ours are."""
    with inside(node):
        return Pins("packetbridge-adopt-34").links()


def all_adopted(bridges: list[Process]) -> bool:
    """Whether the servers' stacks took every connection over, and none was spliced."""
    wait_until(lambda: counted(bridges, "opened") > 0, 5, "adopted connections are counted")
    return counted(bridges, "replayed") == 0


def stat(node: Node, name: str) -> int:
    """A counter of a host's TCP stack."""
    return int(re.search(rf"{name}\s+(\d+)", node.run(["nstat", "-asz"]))[1])


def test_the_server_sees_the_clients_own_address_and_port(shared):
    lab, bridges = shared

    answer = lab.client.curl(f"{URL}/who", "--local-port", "34567")

    assert answer.split()[2] == f"{CLIENT}:34567"
    assert all_adopted(bridges)


def test_replies_pass_no_program_of_ours(shared):
    lab, _ = shared

    (hook,) = attached(lab.backend1)

    assert hook.startswith("tcx-ingress-")


def test_handshakes_and_answers_are_measured_by_the_program(shared):
    lab, _ = shared

    def counts() -> tuple[float, float, float]:
        """Handoffs, handshakes, first acknowledgements."""
        found = lab.balancer.metrics()
        return tuple(sum(value for name, value in found.items() if name.startswith(start))
                     for start in ("l3dsr_balancer_backend_handoffs_total{",
                                   "l3dsr_balancer_handshake_duration_seconds_count{",
                                   "l3dsr_balancer_backend_first_ack_seconds_count{"))

    lab.client.curl(*(f"{URL}/measured/{number}" for number in range(20)),
                    "-H", "Connection: close")

    wait_until(lambda: counts()[0] >= 20, PATIENCE_S, "they are counted")
    handoffs, handshakes, answers = counts()
    assert handshakes >= handoffs
    assert 0 < answers <= handshakes


def test_adopted_connections_are_counted_while_they_are_there(shared):
    lab, bridges = shared

    def count() -> float:
        return sum(bridge.metrics()[f'l3dsr_packetbridge_adopted_flows{{service="{VIP}:80"}}']
                   for bridge in bridges)

    wait_until(lambda: count() == 0, PATIENCE_S, "those of other tests have gone")
    made = [connect(lab.client) for _ in range(40)]
    for number, connection in enumerate(made):
        connection.sendall(request(f"/{number}"))
    wait_until(lambda: count() == 40, PATIENCE_S, "all are adopted")
    direct = [connect(lab.client, address=lab.backend1.server) for _ in range(3)]
    for connection in direct:
        connection.sendall(request("/direct"))
        assert connection.recv(1)

    assert count() == 40

    for connection in (*made, *direct):
        connection.close()
    wait_until(lambda: count() == 0, PATIENCE_S, "they have ended")


def test_urls_stay_with_their_backends(shared):
    lab, bridges = shared
    urls = [f"{URL}/object/{number}" for number in range(200)]

    rounds = [lab.client.curl(*urls, "-H", "Connection: close").splitlines() for _ in range(2)]

    first, again = ([line.split()[:2] for line in answers] for answers in rounds)
    assert first == again
    assert {backend for backend, _ in first} == {"backend1", "backend2"}
    assert all_adopted(bridges)


def test_a_download_arrives_octet_for_octet(shared):
    lab, bridges = shared
    expected = large_file(lab, 100_000_000)

    assert download(lab) == expected
    assert all_adopted(bridges)


def test_an_upload_arrives_octet_for_octet(shared):
    lab, bridges = shared
    content = os.urandom(LARGE_LEN)
    source = lab.directory / "upload"
    source.write_bytes(content)

    lab.client.curl(f"{URL}/upload/it", "-T", str(source), timeout_s=120)

    uploaded = list(lab.directory.glob("nginx-*/upload/it"))
    assert [path.read_bytes() == content for path in uploaded] == [True]
    assert all_adopted(bridges)


def test_half_close_keeps_the_reply_coming(shared):
    lab, _ = shared
    script = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 80)); "
        "s.sendall(b'GET /half HTTP/1.0\\r\\n\\r\\n'); s.shutdown(socket.SHUT_WR); "
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )

    answer = lab.client.run(python(script, VIP))

    assert "200 OK" in answer
    assert " /half " in answer


def test_a_request_in_pieces_reaches_its_urls_backend(shared):
    lab, _ = shared
    whole = lab.client.curl(f"{URL}/a/path/in/pieces").split()[0]
    script = (
        "import socket, sys, time; s = socket.create_connection((sys.argv[1], 80)); "
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "for piece in (b'GET /a/pa', b'th/in', b'/pieces HTT', b'P/1.0\\r\\n\\r\\n'):\n"
        "    s.sendall(piece); time.sleep(0.02)\n"
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )

    answer = lab.client.run(python(script, VIP))

    assert answer.split("\n\n")[1].split()[0] == whole


def test_the_balancer_alone_is_found_at_the_vip(lab):
    balancer, _ = start(lab)
    lab.client.curl(f"{URL}/")

    balancer.stop()
    lab.client.run(["ip", "neigh", "flush", "dev", "eth1"])

    with inside(lab.client), pytest.raises(OSError, match="No route to host"):
        socket.create_connection((VIP, 80), timeout=10)


@pytest.mark.parametrize("sysctls", [
    ["net.ipv4.tcp_timestamps=0"],
    ["net.ipv4.tcp_sack=0"],
    ["net.ipv4.tcp_window_scaling=0"],
    ["net.ipv4.tcp_timestamps=0", "net.ipv4.tcp_sack=0", "net.ipv4.tcp_window_scaling=0"],
], ids=["no timestamps", "no SACK", "no window scaling", "none of them"])
def test_a_client_without_some_options_is_served(lab, sysctls):
    _, bridges = start(lab)
    lab.client.run(["sysctl", "-qw", *sysctls])
    expected = large_file(lab)

    assert download(lab) == expected
    assert all_adopted(bridges)


def test_options_that_the_servers_host_has_switched_off_are_switched_on(lab):
    names = ["tcp_timestamps", "tcp_sack", "tcp_window_scaling", "tcp_syncookies"]
    lab.backend1.run(["sysctl", "-qw", *(f"net.ipv4.{name}=0" for name in names)])
    before = lab.backend1.run(["sysctl", *(f"net.ipv4.{name}" for name in names)])
    _, bridges = start(lab)

    answer = lab.client.curl(f"{URL}/")

    assert "backend1" in answer
    assert all_adopted(bridges)
    bridges[0].stop(signal.SIGINT)
    assert lab.backend1.run(["sysctl", *(f"net.ipv4.{name}" for name in names)]) == before


def test_a_client_with_a_small_mss_is_served(lab):
    _, bridges = start(lab)
    lab.client.run(["ip", "route", "add", f"{VIP}/32", "dev", "eth1", "advmss", "536"])
    expected = large_file(lab)

    assert download(lab) == expected
    assert all_adopted(bridges)


def test_a_narrow_link_on_the_path_makes_itself_known_by_icmp():
    with Lab(path_mtu=1300) as lab:
        _, bridges = start(lab)
        expected = large_file(lab)

        assert download(lab) == expected

        assert all_adopted(bridges)
        assert counted(bridges, "icmp_forwarded") > 0


@pytest.mark.parametrize("leg", ["client", "balancer", "backend1"])
def test_loss_reordering_and_duplicates_cost_no_octet(leg):
    bad = {"loss": 0.03, "reorder": 0.02, "duplicate": 0.02, "seed": 7}
    with Lab(backends=1, impair={leg: bad}) as lab:
        _, bridges = start(lab)
        expected = large_file(lab, 2_000_000)

        digests = [download(lab) for _ in range(2)]

        assert digests == [expected, expected]
        assert all_adopted(bridges)


def test_a_refused_connection_is_reset_not_left_hanging(lab):
    lab.start_bridge(lab.backend1, *ADOPT)  # and no nginx
    lab.start_balancer()

    code = lab.client.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{exitcode}", "--max-time", "20", f"{URL}/"],
        check=False,
    )

    assert code == "56"


def test_the_server_learns_its_clients_true_distance():
    """From the handshake that the balancer had, before anything else is acknowledged."""
    asking = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], 80)); "
        "s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); s.recv(4096); "
        "print('answered', flush=True); s.recv(1)"
    )
    with Lab(backends=1, impair={"client": {"delay_ms": 40}}) as lab:
        start(lab)
        lab.client.start("asking", python(asking, VIP)).wait_for("answered")

        sockets = lab.backend1.run(["ss", "-Htin", f"src {VIP}"])

        assert float(re.search(r"minrtt:([\d.]+)", sockets)[1]) > 70


_ONE_PORT = """
import errno, socket, sys, time
address, count = sys.argv[1], int(sys.argv[2])
answers = 0
for number in range(count):
    deadline = time.monotonic() + 10
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind(("", 4444))
    client.settimeout(10)
    while True:
        try:
            client.connect((address, 80))
            break
        except OSError as error:  # the last connection's end is still on its way
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > deadline:
                raise
    client.sendall(b"GET /%d HTTP/1.0\\r\\n\\r\\n" % number)
    reply = b"".join(iter(lambda: client.recv(4096), b""))
    answers += b" /%d " % number in reply
    client.close()
print(answers)
"""


@pytest.mark.parametrize("timestamps", [1, 0], ids=["timestamps", "no timestamps"])
def test_a_port_can_be_used_again_at_once(lab, timestamps):
    """The server closes first and so has a TIME_WAIT each time, which no SYN ends.

    A connection that lost its first segment would take 200 ms more.
    """
    count = 200
    _, bridges = start(lab)
    lab.client.run(["sysctl", "-qw", f"net.ipv4.tcp_timestamps={timestamps}"])

    answers = lab.client.run(python(_ONE_PORT, VIP, str(count)), timeout_s=0.2 * count)

    assert int(answers) == count
    wait_until(lambda: counted(bridges, "opened") == count, 5, "all are counted")
    assert counted(bridges, "replayed") == 0
    assert stat(lab.backend1, "TcpExtTSEcrRejected") == 0


def test_a_server_on_another_port_and_both_address_families_is_adopted(lab):
    listener = python(
        "import socket\n"
        "s = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "print('listens', flush=True)\n"
        "while True:\n"
        "    c, who = s.accept(); c.recv(4096)\n"
        "    c.sendall(b'HTTP/1.0 200 OK\\r\\n\\r\\n' + repr(who).encode()); c.close()\n"
    )
    lab.backend1.start("dual", listener).wait_for("listens")
    bridge = lab.start_bridge(
        lab.backend1, "--vip", f"3={VIP}:80", "--server", f"{lab.backend1.server}:8080", *ADOPT,
        defaults=False,
    )
    lab.start_balancer()

    answer = lab.client.curl(f"{URL}/")

    assert f"::ffff:{CLIENT}" in answer
    assert all_adopted([bridge])


_MPTCP = python(
    "import socket\n"
    "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n"
    "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
    "s.bind(('0.0.0.0', 80)); s.listen()\n"
    "print('listens', flush=True)\n"
    "while True:\n"
    "    c, who = s.accept()\n"
    "    while data := c.recv(4096): c.sendall(b'by mptcp ' + data)\n"
    "    c.close()\n"
)
# The last request comes when timestamps have left what they are at the beginning.
_REQUESTS = python(
    "import socket, sys, time; s = socket.create_connection((sys.argv[1], 80), timeout=10)\n"
    "for request in (b'GET /1 HTTP/1.0\\r\\n\\r\\n', b'2', b'3'):\n"
    "    s.sendall(request); print(s.recv(4096)[:12].decode()); time.sleep(1)\n", VIP
)


def test_a_server_that_listens_by_mptcp_is_spliced_and_the_start_says_why(lab):
    lab.backend1.start("mptcp", _MPTCP).wait_for("listens")
    bridge = lab.start_bridge(lab.backend1, "--engine", "auto")
    lab.start_balancer()

    answers = lab.client.run(_REQUESTS)

    assert answers.splitlines() == ["by mptcp GET", "by mptcp 2", "by mptcp 3"]
    assert re.search(r"ready: .*: splice, .*\(the server's socket is an MPTCP listener\)",
                     bridge.log())


def test_a_server_that_turns_to_mptcp_later_is_spliced(lab):
    bridge = lab.start_bridge(lab.backend1, "--engine", "auto")
    lab.start_balancer()
    lab.backend1.start("mptcp", _MPTCP).wait_for("listens")

    answers = lab.client.run(_REQUESTS)

    assert answers.splitlines() == ["by mptcp GET", "by mptcp 2", "by mptcp 3"]
    assert ": adopt, fast" in bridge.log()
    assert counted([bridge], "replayed") == 1


def test_a_forged_handoff_opens_nothing(lab):
    start(lab)
    forged = tcp_packet(CLIENT, bridge_address(1), 80, ACK, payload=b"GET / HTTP/1.0\r\n\r\n",
                        tos=TAG)

    with inside(lab.client), \
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        for _ in range(10):
            sender.sendto(forged, (bridge_address(1), 0))

    lab.client.curl(f"{URL}/")  # behind them on the same wire
    assert stat(lab.backend1, "TcpPassiveOpens") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2], ids=lambda n: n.name)
def test_a_bridge_that_ends_and_starts_again_under_load_costs_nothing(lab, number):
    _, (bridge,) = start(lab)
    expected = large_file(lab, 60_000_000)
    watch = lab.backend1.start("watch", ["ip", "monitor", "address"])
    with ThreadPoolExecutor(1) as pool, wrk_meanwhile(lab.client, "-c10") as end_kept, \
            wrk_meanwhile(lab.client, "-c10", *ALONE) as end_new:
        transfer = pool.submit(download, lab, "--limit-rate", "10M")
        wait_until(lambda: lab.client.octets("rx") > 5_000_000, 30, "the download runs")
        for _ in range(3):
            bridge.stop(number)
            served = lab.client.curl(f"{URL}/meanwhile")
            assert "backend1" in served
            bridge = lab.start_bridge(lab.backend1, *ADOPT)

        assert transfer.result(120) == expected
        assert end_kept() > 100
        assert end_new() > 100
    assert watch.running
    assert watch.log() == "", "the VIP has been there all the time"


def test_detach_and_sigterm_leave_the_host_as_it_was(lab):
    before = state(lab.backend1)

    for number in (signal.SIGUSR2, signal.SIGKILL, signal.SIGTERM):
        bridge = lab.start_bridge(lab.backend1, *ADOPT)
        bridge.stop(number)
        if number != signal.SIGTERM:
            assert state(lab.backend1) != before
            lab.backend1.run([*program("packetbridge"), "detach"])

        assert state(lab.backend1) == before
        assert attached(lab.backend1) == []


def test_detach_is_refused_while_the_bridge_runs(lab):
    lab.start_bridge(lab.backend1, *ADOPT)

    with pytest.raises(RuntimeError, match=r"exit code 2: .*stop that one first"):
        lab.backend1.run([*program("packetbridge"), "detach"])


def test_a_portable_bridge_takes_a_fast_ones_place(lab):
    _, (bridge,) = start(lab)
    bridge.kill()

    portable = lab.start_bridge(lab.backend1, "--engine", "portable")

    assert "backend1" in lab.client.curl(f"{URL}/")
    assert counted([portable], "replayed") == 1
    assert attached(lab.backend1) == []


def test_what_cannot_be_adopted_is_refused_where_it_must_be(lab):
    process = lab.start_bridge(
        lab.backend1, "--vip", f"3={VIP}:80", "--server", f"{BALANCER}:80", *ADOPT,
        defaults=False, ready=False,
    )

    assert process.popen.wait(20) == 2
    assert f"--server = '{BALANCER}:80': expected an address of this host" in process.log()
