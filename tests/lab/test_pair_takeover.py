"""Balancers and bridges that come and go: flows go on, or end at once; none hangs."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from traffic import (
    ALONE,
    IS_FAST,
    OUTLIVES,
    PATIENCE_S,
    URL,
    Pair,
    connect,
    download,
    large_file,
    one_answer,
    request,
    sockets,
    start_quick,
    upload,
    wrk,
    wrk_meanwhile,
)

from lab.node import Node, Process, wait_until
from lab.topology import VIP, Lab, program

LENGTH = 15_000_000
RESET_BY_PEER = 56  # curl's exit code
SLOWLY = ("--limit-rate", "4M")
TAKEN = 10  # packets: three for each transfer, after which its flow is in the table


@contextmanager
def _transfers(lab: Lab) -> Iterator[None]:
    """Downloads and uploads, under way within. Afterwards all have arrived octet for octet."""
    expected = large_file(lab, LENGTH)
    contents = [os.urandom(LENGTH) for _ in range(3)]
    before = lab.client.octets("rx"), lab.client.octets("tx")
    with ThreadPoolExecutor(6) as pool:
        downloads: list[Future] = [pool.submit(download, lab, *SLOWLY) for _ in range(3)]
        uploads: list[Future] = [
            pool.submit(upload, lab, f"up{number}", content, *SLOWLY)
            for number, content in enumerate(contents)
        ]
        wait_until(lambda: lab.client.octets("rx") > before[0] + 1_000_000, PATIENCE_S, "down")
        wait_until(lambda: lab.client.octets("tx") > before[1] + 1_000_000, PATIENCE_S, "up")
        yield
        assert [each.result() for each in downloads] == [expected] * 3
        assert [each.result() for each in uploads] == [[content] for content in contents]


def _taken_over(balancer: Process) -> float:
    return balancer.metrics().get('l3dsr_balancer_packets_total{reason="takeover"}', 0)


@pytest.mark.parametrize("way", ["it is stopped", "its host dies"])
def test_transfers_go_on_when_another_balancer_takes_over(way: str) -> None:
    with Lab(balancers=2) as lab:
        first = start_quick(lab).balancer
        with _transfers(lab), lab.client.paused():
            if way == "it is stopped":
                first.stop()
            else:
                lab.switch.run(["ip", "link", "set", "p-balancer", "down"])

            second = lab.start_balancer(node=lab.balancer2)

        assert _taken_over(second) > TAKEN


def _send_by(client: Node, balancer: Node) -> None:
    mac = balancer.run(["cat", "/sys/class/net/eth1/address"]).strip()
    client.run(["ip", "neigh", "replace", VIP, "lladdr", mac, "dev", "eth1", "nud", "permanent"])


def test_connections_may_change_from_one_balancer_to_another_and_back_all_the_time() -> None:
    with Lab(balancers=2) as lab:
        balancers = [start_quick(lab).balancer,
                     lab.start_balancer("--vip-shared", "true", node=lab.balancer2)]
        with _transfers(lab), ThreadPoolExecutor(2) as pool:
            kept = pool.submit(wrk, lab.client, "-c10", "-d3s")
            short = pool.submit(wrk, lab.client, "-c10", "-d3s", *ALONE)

            changes = 0
            while not (kept.done() and short.done()):
                changes += 1
                _send_by(lab.client, (lab.balancer, lab.balancer2)[changes % 2])

            assert kept.result() > 100
            assert short.result() > 100
        assert changes > 20
        assert min(_taken_over(balancer) for balancer in balancers) > 20


def test_connections_survive_a_balancer_that_is_killed_again_and_again(thorough: bool) -> None:
    with Lab() as lab:
        balancer = start_quick(lab).balancer
        taken_over = []  # by each balancer, before it was killed
        with wrk_meanwhile(lab.client, "-c50") as end:
            for _ in range(20 if thorough else 3):
                wait_until(lambda known=balancer: _forwards(known, 1000), PATIENCE_S, "requests")
                taken_over.append(_taken_over(balancer))
                balancer.kill()
                balancer = lab.start_balancer()
            wait_until(lambda: _forwards(balancer, 1000), PATIENCE_S, "requests")

            assert end() > 1000
        assert IS_FAST or min(taken_over[1:]) > 0


def test_transfers_survive_a_balancer_that_is_killed() -> None:
    with Lab() as lab:
        balancer = start_quick(lab).balancer
        with _transfers(lab):
            balancer.kill()

            balancer = lab.start_balancer()

        assert IS_FAST or _taken_over(balancer) > TAKEN


def _forwards(balancer: Process, packets: int) -> bool:
    seen = balancer.metrics()
    return sum(seen.get(f'l3dsr_balancer_packets_total{{reason="{reason}"}}', 0)
               for reason in ("forwarded", "takeover")) > packets


def test_a_kept_connection_without_traffic_outlives_its_balancer(pair: Pair) -> None:
    with connect(pair.lab.client) as client:
        client.sendall(request("/before"))
        before = one_answer(client).split()
        pair.balancer.kill()
        pair.balancer = pair.lab.start_balancer()

        client.sendall(request("/after"))
        after = one_answer(client).split()

    assert [before[1], after[1]] == [b"/before", b"/after"]
    assert (before[0], before[2]) == (after[0], after[2])


def test_a_connection_without_timestamps_ends_when_its_balancer_forgot_it() -> None:
    with Lab(backends=1) as lab:
        balancer = start_quick(lab).balancer
        lab.client.run(["sysctl", "-qw", "net.ipv4.tcp_timestamps=0"])
        with connect(lab.client) as client:
            client.sendall(request("/before"))
            one_answer(client)
            balancer.kill()
            if IS_FAST:  # its table forgets nothing unless it is told to
                lab.balancer.run([*program("balancer"), "detach"])
            lab.start_balancer()

            client.sendall(request("/after"))
            with pytest.raises(ConnectionResetError):
                client.recv(1)


# --- bridges ---


def test_a_bridge_that_is_stopped_resets_its_connections_at_once() -> None:
    with Lab(backends=1) as lab:
        pair = start_quick(lab)
        large_file(lab, 60_000_000)
        with connect(lab.client) as idle, ThreadPoolExecutor(1) as pool:
            idle.sendall(request("/idle"))
            one_answer(idle)
            busy = pool.submit(_curls_exit_code, lab)
            wait_until(lambda: lab.client.octets("rx") > 5_000_000, PATIENCE_S, "it runs")

            pair.bridges[0].stop()

            assert busy.result() == RESET_BY_PEER
            with pytest.raises(ConnectionResetError):
                idle.recv(1)
        wait_until(lambda: not sockets(lab.backend1), PATIENCE_S, "the server has none of them")


def test_a_killed_bridge_leaves_no_download_hanging() -> None:
    with Lab(backends=1) as lab:
        bridge = start_quick(lab).bridges[0]
        large_file(lab, 60_000_000)
        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(_curls_exit_code, lab)
            wait_until(lambda: lab.client.octets("rx") > 5_000_000, PATIENCE_S, "it runs")
            bridge.kill()

            lab.start_bridge(lab.backend1)

            assert busy.result() == (0 if OUTLIVES else RESET_BY_PEER)
        assert "backend1" in lab.client.curl(f"{URL}/")
        wait_until(lambda: not sockets(lab.backend1), PATIENCE_S, "the server has none of them")


def _curls_exit_code(lab: Lab) -> int:
    """Download so slowly that there is time to end a program."""
    said = lab.client.run([
        "curl", "-sS", "-o", "/dev/null", "-w", "%{exitcode}", "--limit-rate", "10M",
        f"{URL}/files/large",
    ], check=False)
    return int(said)


def test_clients_of_a_killed_bridge_that_ask_again_are_answered_or_reset_by_the_next() -> None:
    with Lab(backends=1) as lab:
        pair = start_quick(lab)
        bridge = pair.bridges[0]
        clients = [connect(lab.client) for _ in range(20)]
        for client in clients:
            client.sendall(request("/before"))
            one_answer(client)

        bridge.kill()
        lab.start_bridge(lab.backend1)
        ends = []
        for client in clients:
            client.sendall(request("/after"))
        for client in clients:
            with client:
                try:
                    ends.append(one_answer(client).split()[1])
                except ConnectionResetError:
                    ends.append(b"reset")

        assert ends == [b"/after" if OUTLIVES else b"reset"] * len(clients)
        assert "backend1" in lab.client.curl(f"{URL}/")
