"""The configuration changes while packets flow: nothing that goes on notices it."""

import json
import socket
from collections.abc import Callable, Iterator

import pytest
from netns import state
from traffic import ALONE, PATIENCE_S, connect, one_answer, request, requests

from lab.node import wait_until
from lab.topology import VIP, Lab, program

DSCPS = {80: 3, 81: 7, 8080: 11}
OTHER_VIP = "192.168.33.200"
KINDS = ["portable", "adopt", "splice"]


class Running:
    """A balancer whose file is rewritten."""

    def __init__(self, lab: Lab, text: str) -> None:
        self.lab = lab
        self.path = lab.directory / "balancer.toml"
        self.path.write_text(text)
        self.process = lab.start_balancer("--config", str(self.path), defaults=False)

    def reload(self, text: str | None = None) -> str:
        """Rewrite the file and have it taken. Returns: what has changed."""
        if text is not None:
            self.path.write_text(text)
        return self.lab.balancer.run([*program("balancer"), "reload"])

    def post(self, name: str, text: str) -> str:
        """Rewrite the file and give an order at the control socket. Returns: the answer."""
        self.path.write_text(text)
        path = f"/run/l3dsr/balancer@{self.lab.balancer.namespace}.sock"
        return self.lab.balancer.run(["curl", "-sS", "--unix-socket", path, "-d", "{}",
                                      f"http://balancer/api/v1/{name}"])

    def asked(self, name: str) -> list[dict]:
        """What the program says of its backends."""
        found = self.lab.balancer.run([*program("balancer"), name, "--json"])
        return json.loads(found)["backends"]

    def metric(self, name: str) -> float:
        return self.process.metrics()[f"l3dsr_balancer_{name}"]


Start = Callable[[str], Running]


@pytest.fixture
def start(served: Lab) -> Iterator[Start]:
    """Starts balancers, which end with the test."""
    started: list[Running] = []

    def begin(text: str) -> Running:
        started.append(Running(served, text))
        return started[-1]

    yield begin
    for running in started:
        running.process.stop()


def service(lab: Lab, port: int, ids: list[int], more: str = "", vip: str = VIP, **weights: int
            ) -> str:
    backends = "".join(
        f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
        f'weight = {weights.get(f"w{backend.number}", 1)}\n'
        for backend in lab.backends if backend.number in ids)
    return (f'[[service]]\nvip = "{vip}"\nport = {port}\ndscp = {DSCPS[port]}\n{more}\n{backends}')


@pytest.fixture(scope="module", params=["portable", "adopt"])
def served(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Servers and bridges for all services."""
    with Lab(pair=request.param) as lab:
        for backend in lab.backends:
            lab.start_nginx(backend)
            path = lab.directory / f"{backend.name}.toml"
            path.write_text("".join(
                f'[[service]]\nvip = "{OTHER_VIP if port == 8080 else VIP}:{port}"\n'
                f'dscp = {dscp}\nserver = "{backend.server}:80"\n'
                for port, dscp in DSCPS.items()))
            lab.start_bridge(backend, "--config", str(path), defaults=False)
        yield lab


# What no engine has a part in.
one_engine = pytest.mark.parametrize("served", ["adopt"], indirect=True)


def answerers(lab: Lab, port: int = 80, vip: str = VIP) -> set[str]:
    urls = [f"http://{vip}:{port}/{number}" for number in range(20)]
    lines = lab.client.run(["curl", "-sS", "--fail", *ALONE, *urls]).splitlines()
    return {line.split()[0] for line in lines}


def goes_on(client: socket.socket) -> bool:
    """Whether a kept connection is served once more; else it was reset."""
    try:
        client.sendall(request("/again"))
        one_answer(client)
    except ConnectionError:
        return False
    return True


def test_backends_weights_and_schedulers_change_under_load(served: Lab, start: Start) -> None:
    lab = served
    running = start(service(lab, 80, [1]))
    assert answerers(lab) == {"backend1"}

    with requests(lab) as count:
        said = running.reload(service(lab, 80, [1, 2]))
        assert f"service {VIP}:80, backend 2 ({lab.backend2.address}) is added" in said
        assert answerers(lab) == {"backend1", "backend2"}
        kept = connect(lab.client)
        kept.sendall(request("/kept"))
        one_answer(kept)
        for scheduler in ("rendezvous", "least-flows", "round-robin", "random", "maglev"):
            assert f'→ "{scheduler}"' in running.reload(
                service(lab, 80, [1, 2], f'scheduler = "{scheduler}"'
                        if scheduler != "maglev" else ""))
        assert "weight: 1 → 0" in running.reload(service(lab, 80, [1, 2], w1=0))
        assert answerers(lab) == {"backend2"}
        running.reload(service(lab, 80, [2], 'key = "http.target"'))
        assert answerers(lab) == {"backend2"}
        kept.sendall(request("/again"))  # wherever it was, it goes on
        one_answer(kept)
        before = count()
        wait_until(lambda: count() > before + 200, PATIENCE_S, "all goes on")

    kept.close()
    assert running.metric('reloads_total{result="taken"}') == 8
    assert running.process.stop() == 0


def test_services_come_and_go_under_load(served: Lab, start: Start) -> None:
    lab = served
    web = "[timeouts]\nidle = 5\nhalf_closed = 1\nreset = 1\n" + service(lab, 80, [1, 2])
    running = start(web)
    before = state(lab.balancer)

    with requests(lab):
        assert f"service {VIP}:81 is added" in running.reload(web + service(lab, 81, [1, 2]))
        assert answerers(lab, 81) == {"backend1", "backend2"}
        running.reload(web + service(lab, 8080, [1, 2], vip=OTHER_VIP))
        assert answerers(lab, 8080, OTHER_VIP) == {"backend1", "backend2"}
        with requests(lab, 8080, OTHER_VIP):
            assert f"service {OTHER_VIP}:8080, backend 1" in running.reload(
                web + service(lab, 8080, [2], vip=OTHER_VIP))
        # what is watched is what is configured now
        lab.balancer.run(["ip", "address", "delete", f"{OTHER_VIP}/32", "dev", "eth1"])
        wait_until(lambda: running.metric('repairs_total{what="address"}') == 1, PATIENCE_S,
                   "the VIP is back")
        assert answerers(lab, 8080, OTHER_VIP) == {"backend2"}
        running.reload(web)
        # its flows have ended, and then nothing of it is left
        wait_until(lambda: state(lab.balancer) == before, PATIENCE_S, "the host is as before")

    repairs = {name: value for name, value in running.process.metrics().items()
               if name.startswith("l3dsr_balancer_repairs_total") and value}
    assert repairs == {'l3dsr_balancer_repairs_total{what="address"}': 1}
    assert running.process.stop() == 0


@one_engine
def test_a_vip_that_another_host_has_is_refused(served: Lab, start: Start) -> None:
    web = service(served, 80, [1, 2])
    running = start(web)

    with pytest.raises(RuntimeError, match="an address that no other host has"):
        running.reload(web + service(served, 8080, [1, 2], vip=served.backend1.server))

    assert answerers(served) == {"backend1", "backend2"}
    assert running.process.stop() == 0


@one_engine
def test_checks_begin_and_what_the_operator_wants_stays(served: Lab, start: Start) -> None:
    lab = served
    running = start(service(lab, 80, [1]))
    lab.balancer.run([*program("balancer"), "drain", "1"])

    said = json.loads(running.post("reload", service(lab, 80, [1, 2], "[service.check]")))
    assert any("backend 2" in line for line in said["changed"])
    wait_until(lambda: all(each["passed"] for each in running.asked("health")), PATIENCE_S,
               "both are checked")

    states = {each["id"]: each["state"] for each in running.asked("backends")}
    assert states == {1: "draining", 2: "up"}
    assert answerers(lab) == {"backend2"}
    refused = json.loads(running.post("reload", "[["))
    assert "expected valid TOML" in refused["error"]
    assert running.process.stop() == 0


def test_what_is_removed_drains_and_is_reset_in_the_end(served: Lab, start: Start) -> None:
    lab = served
    running = start(service(lab, 80, [1]))
    clients = [connect(lab.client) for _ in range(2)]
    for client in clients:
        client.sendall(request("/"))
        one_answer(client)

    assert "its flows go on for 300 s at most" in running.reload(service(lab, 80, [2]))
    assert answerers(lab) == {"backend2"}
    for client in clients:
        client.sendall(request("/goes-on"))
        assert one_answer(client).split()[0] == b"backend1"
    running.reload(service(lab, 80, [1, 2]))  # it comes back
    said = running.reload("drain_timeout = 0\n" + service(lab, 80, [2]))
    assert "its flows are reset" in said

    wait_until(lambda: not goes_on(clients[0]), PATIENCE_S, "it is reset")
    assert not goes_on(clients[1])
    assert answerers(lab) == {"backend2"}
    assert running.process.stop() == 0


@one_engine
def test_a_broken_file_changes_nothing_and_says_why(served: Lab, start: Start) -> None:
    lab = served
    web = service(lab, 80, [1, 2])
    running = start(web)

    with requests(lab):
        for text, why in (
            (web.replace("port = 80", "port = 0"), "service[0].port = 0: expected a whole number"),
            (web + "\n[[", "expected valid TOML"),
            ("max_flows = 5000\nid_bits = 4\n" + web, "id_bits: 7 → 4 (takes a restart)"),
        ):
            with pytest.raises(RuntimeError, match="exit code 1") as refused:
                running.reload(text)
            assert why in str(refused.value)
            assert why in running.process.log()
    assert running.metric('reloads_total{result="refused"}') == 3
    assert running.metric('reloads_total{result="taken"}') == 0

    running.path.write_text(service(lab, 80, [1]))
    secret = ("--secret-file", str(lab.secret_file))
    said = lab.balancer.run([*program("balancer"), "check", "--diff", *secret, str(running.path)])
    assert f"backend 2 ({lab.backend2.address}) is removed" in said
    assert answerers(lab) == {"backend1", "backend2"}
    assert running.process.stop() == 0
    with pytest.raises(RuntimeError, match="expected a balancer that runs here"):
        lab.balancer.run([*program("balancer"), "reload"])


@one_engine
def test_files_that_are_watched_are_taken_when_they_have_changed(served: Lab, start: Start) -> None:
    lab = served
    addresses = lab.directory / "addresses"
    addresses.write_text(f"{lab.backend1.address} id=1\n")
    web = (f'watch = true\nstate_directory = "{lab.directory}/state"\n'
           + service(lab, 80, [], f'backends_file = "{addresses}"'))
    running = start(web)
    assert answerers(lab) == {"backend1"}

    with requests(lab):
        addresses.write_text(f"{lab.backend1.address} id=1\nnonsense\n{lab.backend2.address}\n")
        running.process.wait_for(rf"backend 2 \({lab.backend2.address}\) is added")
        assert running.process.log().count("line 2: 'nonsense': expected") == 1
        assert answerers(lab) == {"backend1", "backend2"}
        draft = lab.directory / "draft"
        draft.write_text(web + service(lab, 81, [1]))
        draft.replace(running.path)  # as editors do it
        running.process.wait_for(rf"service {VIP}:81 is added")
        assert answerers(lab, 81) == {"backend1"}
        running.path.write_text(web.replace("port = 80", "prot = 80"))
        running.process.wait_for("in use are kept: .*prot")
        addresses.write_text(f"{lab.backend2.address}\n")
        running.process.wait_for(rf"backend 1 \({lab.backend1.address}\) is removed")
        assert answerers(lab) == {"backend2"}

    assert running.process.stop() == 0


def test_a_kill_switch_works_even_if_the_daemon_is_dead(served: Lab, start: Start) -> None:
    lab = served
    before = state(lab.balancer)
    running = start('lifetime = "3s"\n' + service(lab, 80, [1]))
    wait_until(lambda: not running.process.running, PATIENCE_S, "it has ended")
    assert running.process.popen.returncode == 0
    assert state(lab.balancer) == before

    # the VIP stays when it is killed, and what is not for us the host answers: with a RST
    path = lab.directory / "killed.toml"
    path.write_text(service(lab, 80, [1]))
    killed = lab.start_balancer("--config", str(path), "--for", "6s", defaults=False)
    killed.kill()

    wait_until(lambda: not _answers(lab), PATIENCE_S, "the host refuses")
    flags = ("--secret-file", str(lab.secret_file), "--config", str(path), "--interface", "eth1")
    lab.balancer.run([*program("balancer"), "detach", *flags])
    assert state(lab.balancer) == before


def _answers(lab: Lab) -> bool:
    """Whether a client is kept waiting, or served, instead of being refused."""
    try:
        connect(lab.client).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_takes_services_and_servers_while_packets_flow(kind: str) -> None:
    with Lab(pair=kind, backends=1) as lab:
        backend = lab.backend1
        lab.start_nginx(backend)
        path = lab.directory / "bridge.toml"

        def bridged(port: int) -> str:
            return (f'[[service]]\nvip = "{VIP}:{port}"\ndscp = {DSCPS[port]}\n'
                    f'server = "{backend.server}:80"\n')

        def reload(text: str) -> str:
            path.write_text(text)
            return backend.run([*program("packetbridge"), "reload"])

        path.write_text(bridged(80))
        bridge = lab.start_bridge(backend, "--config", str(path), defaults=False)
        before = state(backend)
        running = Running(lab, service(lab, 80, [1]) + service(lab, 81, [1]))
        kept = connect(lab.client)
        kept.sendall(request("/"))
        one_answer(kept)

        with requests(lab):
            assert f"service {VIP}:81 is added" in reload(bridged(80) + bridged(81))
            assert answerers(lab, 81) == {"backend1"}
            with pytest.raises(RuntimeError, match="exit code 1"):
                reload(bridged(80).replace("dscp = 3", "dscp = 64"))
            assert "is removed" in reload("drain_timeout = 0\n" + bridged(80))
            wait_until(lambda: state(backend) == before, PATIENCE_S, "the host is as before")

        kept.sendall(request("/goes-on"))
        one_answer(kept)
        assert bridge.metrics()['l3dsr_packetbridge_reloads_total{result="taken"}'] == 2

        lab.start_nginx(backend, port=8080, name="other")
        end = f"{backend.server}:80"
        assert f'server: "{end}" → "{end}80"' in reload(bridged(80).replace(end, f"{end}80"))
        assert answerers(lab) == {"other"}
        assert goes_on(kept) == (kind == "adopt")  # it is the stack's; else it was translated
        kept.close()
        assert bridge.stop() == running.process.stop() == 0
