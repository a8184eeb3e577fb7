"""Services are added, removed and put into another order: what is under way goes on.

Clients have no timestamps, so nothing but the flow table knows where their packets go.
"""

import itertools
import signal
import socket
from collections.abc import Iterator

import pytest
from netns import inside
from traffic import PATIENCE_S, need_programs, one_answer, request, requests

from lab.node import Process, wait_until
from lab.topology import VIP, Lab

DSCPS = {80: 3, 81: 7, 8080: 11}
CLIENTS = 12
FLOWS = "l3dsr_balancer_flows"
OF_BACKEND = "l3dsr_balancer_backend_flows"
_ports = itertools.count(20_000)  # below those that the kernel gives


@pytest.fixture(autouse=True, scope="module")
def _programs() -> None:
    need_programs()


@pytest.fixture
def served() -> Iterator[Lab]:
    """Servers and bridges for all services, and a client without timestamps."""
    with Lab() as lab:
        lab.client.run(["sysctl", "-qw", "net.ipv4.tcp_timestamps=0",
                        "net.ipv4.ip_local_port_range=32768 60999"])
        for backend in lab.backends:
            lab.start_nginx(backend)
            services = "".join(
                f'[[service]]\nvip = "{VIP}:{port}"\ndscp = {dscp}\n'
                f'server = "{backend.server}:80"\n'
                for port, dscp in DSCPS.items())
            path = lab.directory / f"{backend.name}.toml"
            path.write_text(services)
            lab.start_bridge(backend, "--config", str(path), defaults=False)
        yield lab


def balancer(lab: Lab, *ports: int) -> Process:
    """With services on these ports, in this order."""
    backends = "".join(
        f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
        for backend in lab.backends)
    path = lab.directory / "balancer.toml"
    path.write_text("".join(
        f'[[service]]\nvip = "{VIP}"\nport = {port}\ndscp = {DSCPS[port]}\n{backends}'
        for port in ports))
    return lab.start_balancer("--engine", "fast", "--config", str(path), defaults=False)


def connect(lab: Lab, port: int) -> socket.socket:
    """From a port that no other connection has: all services have the same server, which could not
    tell two of one port apart.
    """
    with inside(lab.client):
        made = socket.socket()
    made.settimeout(PATIENCE_S)
    made.bind(("", next(_ports)))
    made.connect((VIP, port))
    return made


def ask(client: socket.socket, path: str) -> list[bytes]:
    """The words of an answer: the backend's name, the path, the client's address."""
    client.sendall(request(path))
    return one_answer(client).split()


def open_clients(lab: Lab, port: int) -> dict[socket.socket, bytes]:
    """Kept connections, each with the backend that answers it."""
    clients = [connect(lab, port) for _ in range(CLIENTS)]
    found = {client: ask(client, f"/{port}/{number}")[0] for number, client in enumerate(clients)}
    assert len(set(found.values())) == 2
    return found


def go_on(clients: dict[socket.socket, bytes]) -> None:
    assert {client: ask(client, "/later")[0] for client in clients} == clients


def test_flows_of_other_services_stay_whatever_the_file_says_next(served: Lab) -> None:
    running = balancer(served, 80, 81)
    web, other = open_clients(served, 80), open_clients(served, 81)

    with requests(served, 81) as count:  # new connections, all the time
        before = count()
        running.stop(signal.SIGUSR2)
        running = balancer(served, 8080, 81, 80)  # one more, and in another order
        go_on(web)
        go_on(other)
        new = open_clients(served, 8080)

        running.stop(signal.SIGUSR2)
        running = balancer(served, 81, 8080)  # one is gone
        wait_until(lambda: count() > before + 100, PATIENCE_S, "requests go on")
    go_on(other)
    go_on(new)
    # its flows leave, and only then its number is another's
    wait_until(lambda: running.metrics()[FLOWS] == sum(_of_backends(running).values()), PATIENCE_S,
               "its flows have left")

    running.stop(signal.SIGUSR2)
    running = balancer(served, 80, 81, 8080)
    go_on(other)
    go_on(new)
    for client in (*web, *other, *new):
        client.close()


def test_a_backends_flows_are_right_from_the_first_moment_of_the_next_daemon(served: Lab) -> None:
    running = balancer(served, 80, 81)
    clients = open_clients(served, 80) | open_clients(served, 81)
    before = _of_backends(running)

    running.stop(signal.SIGUSR2)
    running = balancer(served, 81, 80)
    first = _of_backends(running)
    for client in list(clients)[:CLIENTS]:
        client.close()
    seen = [_of_backends(running) for _ in range(20)]

    assert sum(before.values()) == 2 * CLIENTS
    assert first == before
    assert all(0 <= flows <= before[name] for each in seen for name, flows in each.items())
    for client in clients:
        client.close()


def _of_backends(running: Process) -> dict[str, float]:
    return {name: value for name, value in running.metrics().items()
            if name.startswith(OF_BACKEND + "{")}
