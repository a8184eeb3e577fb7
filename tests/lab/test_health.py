"""Checks are handoffs: what they find on a real network, and where new and open flows go then."""

import re
import time

import pytest
from traffic import URL, connect, one_answer, request, sockets

from lab.node import Process, wait_until
from lab.topology import DSCP, VIP, Lab, bridge_address, program, run

ONE_EACH = ["portable", "adopt", "splice"]  # of engines, and of modes
CHECK = """
interval = 0.4
timeout = 0.2
rise = 2
fall = 2
"""
CHECKS = "l3dsr_balancer_backend_checks_total"
PATIENCE_S = 5.0
SETTLED_S = 0.3  # from a state to the tables that follow from it


def balancer(lab: Lab, check: str = CHECK) -> Process:
    backends = "".join(
        f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
        for backend in lab.backends)
    path = lab.directory / "balancer.toml"
    path.write_text(f'[[service]]\nname = "web"\nvip = "{VIP}"\nport = 80\ndscp = {DSCP}\n'
                    f"[service.check]\n{check}\n{backends}")
    return lab.start_balancer("--config", str(path), defaults=False)


def checks(running: Process, backend: int, result: str = "passed") -> float:
    return running.metrics()[f'{CHECKS}{{address="{bridge_address(backend)}",backend="{backend}",'
                             f'result="{result}",service="web"}}']


def test_a_dead_server_gets_no_new_flows_until_it_is_back(any_kind: str) -> None:
    with Lab(pair=any_kind) as lab:
        servers = [lab.start_nginx(backend) for backend in lab.backends]
        bridges = lab.start_bridges()
        running = balancer(lab)
        wait_until(lambda: min(checks(running, 1), checks(running, 2)) > 2, PATIENCE_S, "checked")
        wait_until(lambda: counted(bridges[0], "check") > 2, PATIENCE_S, "counted as checks")
        assert not counted(bridges[0], "replayed")  # as handoffs are, spliced
        assert "adopt" not in any_kind or not counted(bridges[0], "opened")
        urls = [f"/{number}" for number in range(12)]
        before = answers(lab, urls)

        servers[0].stop()
        running.wait_for("backend 1 of web .* is down: it refuses the connection", PATIENCE_S)
        time.sleep(SETTLED_S)
        meanwhile = answers(lab, urls)
        lab.start_nginx(lab.backend1)
        running.wait_for("backend 1 of web .* is up again", PATIENCE_S)
        wait_until(lambda: answers(lab, urls) == before, PATIENCE_S, "all is as before")

        assert set(before.values()) == {"backend1", "backend2"}
        assert set(meanwhile.values()) == {"backend2"}
        assert checks(running, 2, "failed") == 0


def counted(bridge: Process, reason: str) -> float:
    return bridge.metrics().get(f'l3dsr_packetbridge_packets_total{{reason="{reason}"}}', 0)


def answers(lab: Lab, urls: list[str]) -> dict[str, str]:
    return {url: lab.client.curl(URL + url).split()[0] for url in urls}


@pytest.mark.parametrize("kind", ONE_EACH)
def test_whatever_keeps_clients_from_a_backend_is_found(kind: str) -> None:
    """A bridge that is not there, another secret, a DSCP that something on the way has changed."""
    remark = ["-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "-m", "dscp", "--dscp", str(DSCP),
              "-j", "DSCP", "--set-dscp", "0"]
    with Lab(pair=kind) as lab:
        for backend in lab.backends:
            lab.start_nginx(backend)
        bridge = lab.start_bridge(lab.backend1)
        lab.start_bridge(lab.backend2)
        running = balancer(lab)
        wait_until(lambda: checks(running, 1) > 2, PATIENCE_S, "checked")

        bridge.stop()
        news(running, "backend 1 of web .* is down: it is silent for 0.2 s: no bridge there")
        bridge = lab.start_bridge(lab.backend1)
        news(running, "backend 1 of web .* is up again")

        bridge.stop()
        other = lab.directory / "other"
        run([*program("balancer"), "keygen", str(other)])
        bridge = lab.start_bridge(lab.backend1, "--secret-file", str(other))
        news(running, "backend 1 of web .* is down: it is silent for 0.2 s: .* another secret")
        bridge.stop()
        lab.start_bridge(lab.backend1)
        news(running, "backend 1 of web .* is up again")

        lab.balancer.run(["iptables", *remark])
        news(running, "backend 2 of web .* is down: .* packets lost or remarked on the way")
        news(running, "all backends of web are down; new flows are given to all of them")
        lab.balancer.run(["iptables", *(word.replace("-A", "-D") for word in remark)])
        news(running, "backend 2 of web .* is up again")


@pytest.mark.parametrize("kind", ONE_EACH)
def test_open_flows_of_a_backend_that_is_down_are_reset_where_that_is_wanted(kind: str) -> None:
    with Lab(pair=kind) as lab:
        for backend in lab.backends:
            lab.start_nginx(backend)
        bridges = lab.start_bridges()
        running = balancer(lab, f'{CHECK}on_down = "reset"')
        clients = [connect(lab.client) for _ in range(12)]
        for number, client in enumerate(clients):
            client.sendall(request(f"/{number}"))
        found = [one_answer(client).split()[0] for client in clients]

        bridges[0].kill()
        lab.backend1.run(["ip", "link", "set", "eth1", "down"])
        news(running, "backend 1 of web .* is down")
        time.sleep(SETTLED_S)
        for number, (client, at) in enumerate(zip(clients, found, strict=True)):
            client.sendall(request(f"/again/{number}"))
            if at == b"backend1":
                with pytest.raises(ConnectionResetError):
                    one_answer(client)
            else:
                assert one_answer(client).split()[0] == at
            client.close()

        assert set(found) == {b"backend1", b"backend2"}


@pytest.mark.parametrize("kind", ["portable", "adopt"])
def test_clients_that_hear_nothing_have_a_backend_checked_at_once(kind: str) -> None:
    """Checks are an hour apart: nothing else would find out that its host is dead."""
    with Lab(pair=kind) as lab:
        for backend in lab.backends:
            lab.start_nginx(backend)
        lab.start_bridges()
        running = balancer(lab, "interval = 3600\ntimeout = 0.2\nfall = 1\non_down = \"reset\"")
        wait_until(lambda: min(checks(running, 1), checks(running, 2)) > 0, PATIENCE_S, "checked")
        assert answers(lab, ["/1"])
        assert not any("unanswered" in name and value for name, value in running.metrics().items())

        lab.backend1.run(["ip", "link", "set", "eth1", "down"])
        clients = [connect(lab.client) for _ in range(24)]
        for number, client in enumerate(clients):
            client.sendall(request(f"/{number}"))
        running.wait_for("backend 1 of web .* is suspect: most clients repeat", 2 * PATIENCE_S)
        running.wait_for("backend 1 of web .* is down", PATIENCE_S)
        metrics = running.metrics()
        for client in clients:
            client.close()

        def counted(what: str, backend: int) -> float:
            return metrics[f'l3dsr_balancer_backend_{what}_total{{'
                           f'address="{bridge_address(backend)}",backend="{backend}",'
                           'service="web"}']

        assert 3 <= counted("unanswered", 1) <= counted("handoffs", 1)
        assert counted("unanswered", 2) == 0


@pytest.mark.parametrize("kind", ["portable", "adopt"])
def test_a_bad_wire_brings_nobody_down(kind: str) -> None:
    impair = {name: {"loss": 0.05, "seed": 7} for name in ("balancer", "backend1", "backend2")}
    with Lab(pair=kind, impair=impair) as lab:
        for backend in lab.backends:
            lab.start_nginx(backend)
        lab.start_bridges()
        running = balancer(lab, "interval = 0.5\ntimeout = 0.5")

        wait_until(lambda: min(checks(running, 1), checks(running, 2)) > 20, 30, "checked")

        assert " is down" not in running.log()
        assert "vanish" not in running.log()  # nor is a path taken for a narrow one


def test_tls_and_payloads_are_checked_too() -> None:
    with Lab(backends=1, pair="adopt") as lab:
        backend = lab.backend1
        lab.start_nginx(backend, tls=True)
        lab.start_bridge(backend, "--vip", f"3={VIP}:443", "--server", f"{backend.server}:443",
                         defaults=False)
        path = lab.directory / "balancer.toml"
        path.write_text(
            f'[[service]]\nname = "web"\nvip = "{VIP}"\nport = 443\ndscp = 3\nkey = "tls.sni"\n'
            f'[service.check]\n{CHECK}name = "www.example.org"\n'
            f'[[service.backend]]\nid = 1\naddress = "{backend.address}"\n')
        running = lab.start_balancer("--config", str(path), defaults=False)
        wait_until(lambda: checks(running, 1) > 2, PATIENCE_S, "checked")

        assert checks(running, 1, "failed") == 0
        running.stop()
        path.write_text(path.read_text().replace('name = "www.example.org"', '''kind = "payload"
send = "GET / HTTP/1.0\\r\\n\\r\\n"
expect = "HTTP request was sent to HTTPS port"'''))
        running = lab.start_balancer("--config", str(path), defaults=False)
        wait_until(lambda: checks(running, 1) > 2, PATIENCE_S, "checked")

        assert checks(running, 1, "failed") == 0


def test_checks_leave_nothing_behind_and_no_client_notices_them() -> None:
    """No socket at the server stays, no flow at the balancer is entered."""
    with Lab(backends=1, pair="adopt") as lab:
        lab.start_nginx(lab.backend1)
        lab.start_bridge(lab.backend1)
        running = balancer(lab)
        wait_until(lambda: checks(running, 1) > 8, PATIENCE_S, "checked")
        metrics = running.metrics()

        assert metrics["l3dsr_balancer_flows"] == 0
        assert not metrics.get('l3dsr_balancer_packets_total{reason="handoff"}')
        assert len(sockets(lab.backend1)) <= 1


def news(running: Process, pattern: str) -> None:
    """Wait until it has said something that it had not when it was asked last."""
    seen = _seen.setdefault(running.pid, 0)

    def found() -> re.Match[str] | None:
        return re.compile(pattern).search(running.log(), seen)

    wait_until(lambda: bool(found()), PATIENCE_S, pattern)
    match = found()
    assert match
    _seen[running.pid] = match.end()


_seen: dict[int, int] = {}


@pytest.mark.parametrize("kind", ["portable", "adopt"])
def test_a_restart_does_not_take_a_dead_backend_for_a_living_one(kind: str) -> None:
    with Lab(pair=kind) as lab:
        for backend in lab.backends:
            lab.start_bridge(backend)
        lab.start_nginx(lab.backend2)
        running = balancer(lab, "interval = 10")

        running.wait_for("backend 1 of web .* is down: it refuses the connection", PATIENCE_S)
        time.sleep(SETTLED_S)

        assert set(answers(lab, [f"/{number}" for number in range(12)]).values()) == {"backend2"}
