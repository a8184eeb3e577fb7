"""The real programs on a host: what they change, what they refuse, and what remains of them."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns import inside, state, tcp_packet

from common.cluster.cookie import Secrets
from lab.node import Node, Process, wait_until
from lab.topology import BALANCER, CLIENT, VIP, Lab, bridge_address, program, server_address

BRIDGE, SERVER = bridge_address(1), server_address(1)
SYN, ACK = 2, 16
TAG = 3 << 2


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as network:
        yield network


@pytest.fixture(scope="module")
def quiet() -> Iterator[Lab]:
    """For tests that show that nothing of theirs is left on its hosts."""
    with Lab(backends=1) as network:
        yield network


def start(lab: Lab, name: str, *flags: str, ready: bool = True) -> Process:
    if name == "balancer":
        return lab.start_balancer(*flags, ready=ready)
    return lab.start_bridge(lab.backend1, *flags, ready=ready)


def host_of(lab: Lab, name: str) -> Node:
    return lab.balancer if name == "balancer" else lab.backend1


def refused(process: Process) -> str:
    """The one line that a program says when it refuses to start."""
    assert process.popen.wait(20) == 2
    (line,) = process.log().splitlines()
    return line


both = pytest.mark.parametrize("name", ["balancer", "packetbridge"])


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_host_is_as_it_was_after(quiet: Lab, name: str, number: int) -> None:
    host = host_of(quiet, name)
    before = state(host)

    process = start(quiet, name)
    during = state(host)
    code = process.stop(number)

    assert code == 0
    assert during != before
    assert state(host) == before
    assert re.search(r"counters: .*flows=0", process.log())


@both
def test_the_next_start_cleans_up_after_a_killed_one(quiet: Lab, name: str) -> None:
    host = host_of(quiet, name)
    before = state(host)

    start(quiet, name).kill()
    left = state(host)
    again = start(quiet, name)
    running = state(host)
    code = again.stop()

    assert left == running != before
    assert f"undoing the changes that a killed {name} left on this host" in again.log()
    assert code == 0
    assert state(host) == before


@both
@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.3, 0.4])
def test_a_signal_during_the_start_leaves_nothing(quiet: Lab, name: str, delay_s: float) -> None:
    host = host_of(quiet, name)
    before = state(host)
    process = start(quiet, name, ready=False)

    time.sleep(delay_s)
    code = process.stop()

    assert code in (0, -signal.SIGTERM)  # the latter while Python itself still starts
    assert state(host) == before


def _reload(daemon: Process, said: str) -> None:
    before = daemon.log().count(said)
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: daemon.log().count(said) > before, 10, f"{daemon.name} says {said}")


def test_a_server_may_have_the_bridges_own_address_at_another_port(lab: Lab) -> None:
    lab.start_nginx(lab.backend1, address=BRIDGE, port=8080)
    lab.start_bridge(lab.backend1, "--vip", f"3={VIP}:80", "--server", f"{BRIDGE}:8080",
                     defaults=False)
    lab.start_balancer()

    through = lab.client.curl(f"http://{VIP}/")
    straight = lab.client.curl(f"http://{BRIDGE}:8080/")

    assert "backend1" in through
    assert "backend1" in straight


def test_the_secret_is_rotated_without_a_restart(lab: Lab) -> None:
    balancer, (bridge,) = lab.start_all()
    old, new = Secrets.parse(lab.secret_file.read_text()).current, bytes(range(16))

    lab.secret_file.write_text(Secrets(new, old).emit())
    _reload(bridge, "are now in use")
    with_old_cookies = lab.client.curl(f"http://{VIP}/")
    _reload(balancer, "are now in use")
    lab.secret_file.write_text(Secrets(new).emit())
    _reload(bridge, "are now in use")
    with_new_cookies = lab.client.curl(f"http://{VIP}/")

    assert "backend1" in with_old_cookies
    assert "backend1" in with_new_cookies


def test_a_secret_that_cannot_be_read_leaves_the_old_one_in_use(lab: Lab) -> None:
    balancer, (bridge,) = lab.start_all()

    lab.secret_file.write_text("nonsense")
    for daemon in (balancer, bridge):
        _reload(daemon, "the secrets in use are kept")

    assert "backend1" in lab.client.curl(f"http://{VIP}/")


def test_a_dead_balancers_packets_are_dropped_and_no_client_is_reset(lab: Lab) -> None:
    start(lab, "balancer").kill()

    with inside(lab.client), pytest.raises(TimeoutError):
        socket.create_connection((VIP, 80), timeout=1.5)

    with inside(lab.client), pytest.raises(ConnectionRefusedError):  # while the VIP itself is there
        socket.create_connection((VIP, 81), timeout=1.5)


def test_a_dead_bridges_packets_are_dropped_and_direct_connections_live(lab: Lab) -> None:
    lab.start_nginx(lab.backend1)
    with inside(lab.client):
        answers = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    answers.settimeout(0.5)
    start(lab, "packetbridge").kill()

    _send(lab.client, tcp_packet(CLIENT, BRIDGE, 80, ACK, payload=b"x", tos=TAG))

    with pytest.raises(TimeoutError):
        answers.recv(100)
    answers.close()
    assert "backend1" in lab.client.curl(f"http://{SERVER}/direct")


def test_only_tagged_packets_are_looked_at_by_the_bridge(lab: Lab) -> None:
    bridge = start(lab, "packetbridge")

    for tos in (0, 4 << 2, TAG, TAG | 1):
        _send(lab.client, tcp_packet(CLIENT, BRIDGE, 80, ACK, payload=b"x", tos=tos, sport=tos + 1))
    _send(lab.client, tcp_packet(CLIENT, BRIDGE, 81, ACK, payload=b"x", tos=TAG))

    def counted() -> dict[str, float]:
        return {key: value for key, value in bridge.metrics().items()
                if "packets_total{reason" in key and value}

    wait_until(lambda: sum(counted().values()) >= 2, 5, "the bridge has seen both")
    assert counted() == {'l3dsr_packetbridge_packets_total{reason="unknown_flow"}': 2.0}


def _send(node: Node, packet: bytes) -> None:
    with inside(node):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sender.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
    sender.close()


def test_a_host_answers_ping_to_the_vip_itself(lab: Lab) -> None:
    start(lab, "balancer")
    request = bytes.fromhex("0800f7f8 0000 0007".replace(" ", ""))
    with inside(lab.client):
        client = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    client.settimeout(5)

    client.sendto(request, (VIP, 0))

    with client:
        assert client.recv(100)[20:] == bytes.fromhex("0000fff800000007")


# --- refusals ---


def test_a_second_balancer_for_a_vip_is_refused(lab: Lab) -> None:
    first = start(lab, "balancer")
    before = state(lab.balancer)

    second = start(lab, "balancer", "--queue", "50", "--metrics", "127.0.0.1:9102", ready=False)

    assert refused(second) == (
        f"balancer: command line: vip = '{VIP}': expected a VIP of its own: "
        f"another balancer (pid {first.pid}) has it; stop that one first"
    )
    assert state(lab.balancer) == before
    assert first.running


def test_a_second_balancer_with_the_same_queue_is_refused(lab: Lab) -> None:
    first = start(lab, "balancer")
    before = state(lab.balancer)

    second = start(lab, "balancer", "--vip", "192.168.33.99", ready=False)

    assert refused(second) == (
        "balancer: command line: queue = 33: expected a queue number of its own: "
        f"another balancer (pid {first.pid}) has it; stop that one first"
    )
    assert state(lab.balancer) == before


def test_another_programs_queue_is_refused(lab: Lab) -> None:
    first = lab.start_balancer()

    process = lab.start_bridge(lab.backend1, "--queue", "33")
    on_one_host = lab.balancer.start("packetbridge", [
        *program("packetbridge"), "--secret-file", str(lab.secret_file), "--queue", "33",
        "--vip", "7=192.168.33.99:80", "--server", f"{BALANCER}:8080", "--address", BALANCER,
    ])

    assert process.running  # another host, another queue 33
    assert refused(on_one_host) == (
        "packetbridge: command line: queue = 33: expected the number of a queue that is free: "
        f"the program with netlink port {first.pid} has it"
    )


@pytest.mark.parametrize("flags, refusal", [
    (("--queue", "50"), f"vip = '{VIP}:80': expected a vip of its own"),
    (("--queue", "50", "--vip", "7=192.168.33.99:80"),
     f"server = '{SERVER}:80': expected a server of its own"),
], ids=["the same VIP", "the same server"])
def test_a_second_bridge_is_refused(lab: Lab, flags: tuple[str, ...], refusal: str) -> None:
    first = start(lab, "packetbridge")
    before = state(lab.backend1)
    described = ["--server", f"{SERVER}:80"]

    second = lab.start_bridge(lab.backend1, *described, *flags, "--metrics", "127.0.0.1:9102",
                              defaults=False, ready=False)

    line = refused(second)
    assert refusal in line
    assert f"another packetbridge (pid {first.pid}) has it; stop that one first" in line
    assert state(lab.backend1) == before


@both
@pytest.mark.parametrize("flags, said", [
    (("--interface", "eth7"), "--interface = 'eth7': expected an interface of this host: eth1"),
    (("--interface", "lo"), "--interface = 'lo': expected an interface that clients' packets"),
    (("--secret-file", "/nonexistent"), "secret_file = '/nonexistent': expected"),
    (("--metrics", "192.0.2.1:9101"), "metrics = '192.0.2.1:9101': expected an address and port"),
], ids=["interface", "loopback", "secret", "metrics"])
def test_what_cannot_work_is_refused_and_the_host_untouched(
    quiet: Lab, name: str, flags: tuple[str, ...], said: str
) -> None:
    before = state(host_of(quiet, name))

    line = refused(start(quiet, name, *flags, ready=False))

    assert line.startswith(f"{name}: command line: {said}")
    assert state(host_of(quiet, name)) == before


@both
def test_on_a_strange_host_nothing_is_taken_for_granted(lab: Lab, name: str) -> None:
    host = host_of(lab, name)
    host.run(["ip", "address", "flush", "dev", "eth1"])
    host.run(["ip", "address", "add", "203.0.113.11/24", "dev", "eth1"])
    before = state(host)

    process = host.start(name, program(name))

    assert process.popen.wait(20) == 2
    first, *lines = process.log().splitlines()
    assert first.startswith(f"{name}: /etc/l3dsr/{name}.toml: service = None: expected a file ")
    assert "eth1 has 203.0.113.11/24" in first
    assert [line.partition("=")[0].strip() for line in lines][:2] == ["[[service]]", "vip"]
    assert state(host) == before


@pytest.mark.parametrize("name, flags, said", [
    ("balancer", ("--backend", BALANCER), f"--backend address = '{BALANCER}': expected the address "
                                          "of another host"),
    ("balancer", ("--vip", BALANCER), f"--vip = '{BALANCER}': expected an address that no host"),
    ("packetbridge", ("--engine", "fast", "--mode", "adopt", "--server", "192.168.33.99:80"),
     "--server = '192.168.33.99:80': expected an address of this host"),
    ("packetbridge", ("--address", VIP), f"--address = '{VIP}': expected the bridge's own"),
])
def test_what_cannot_work_on_this_host_is_refused_by_run_and_by_check(
    quiet: Lab, name: str, flags: tuple[str, ...], said: str
) -> None:
    host = host_of(quiet, name)
    before = state(host)

    process = start(quiet, name, *flags, ready=False)
    code = process.popen.wait(20)
    checked = host.start("check", [*program(name), "check", "--secret-file",
                                   str(quiet.secret_file), *flags])

    assert (code, checked.popen.wait(20)) == (2, 2)
    assert process.log().startswith(f"{name}: command line: {said}")
    assert checked.log().startswith(f"{name}: command line: {said}")
    assert state(host) == before


@both
def test_who_has_no_right_to_it_is_told_so(quiet: Lab, name: str) -> None:
    process = host_of(quiet, name).start(name, [
        "setpriv", "--bounding-set", "-net_admin", *program(name),
    ])

    assert refused(process) == (
        f"{name}: {name}: user = 0: expected root, or the capabilities NET_ADMIN and NET_RAW: "
        f"sudo {name}"
    )


# --- what they say ---


@both
def test_counters_are_logged_when_asked_for(lab: Lab, name: str) -> None:
    process = start(lab, name, "--log-format", "json")

    process.popen.send_signal(signal.SIGUSR1)

    process.wait_for(r"counters: .*send_failures=0")
    entries = [json.loads(line) for line in process.log().splitlines()]
    assert entries[0]["message"].startswith("ready: ")
    assert {"time", "level", "message", "event"} == set(entries[0])


def test_systemd_is_told_through_the_programs_own_socket(lab: Lab) -> None:
    path = lab.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        process = lab.balancer.start("balancer", [
            "env", f"NOTIFY_SOCKET={path}", *program("balancer"),
            "--secret-file", str(lab.secret_file),
        ])

        said = manager.recv(100)
        process.stop()

        assert (said, manager.recv(100)) == (b"READY=1", b"STOPPING=1")


def test_journals_leave_with_their_programs(lab: Lab) -> None:
    balancer = start(lab, "balancer")
    journal = Path(f"/run/l3dsr/balancer-33.{lab.balancer.inode}.json")

    kinds = [change["kind"] for change in json.loads(journal.read_text())["changes"]]
    balancer.stop()

    assert set(kinds) == {"firewall", "address"}
    assert not journal.exists()
