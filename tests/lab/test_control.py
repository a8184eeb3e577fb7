"""A balancer that runs is looked at, and told what to do with its backends, while packets flow."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from traffic import backends_of, connect, one_answer, request

from lab.node import Process, wait_until
from lab.topology import DSCP, VIP, Lab, program, run

PATIENCE_S = 20.0
NOBODY = 65534
PATHS = [f"/{number}" for number in range(60)]


class Site:
    """A lab with a balancer that serves `web` from two backends."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        for backend in lab.backends:
            lab.start_nginx(backend)
        lab.start_bridges()
        backends = "".join(
            f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
            for backend in lab.backends)
        self.config = lab.directory / "balancer.toml"
        self.config.write_text(
            "[timeouts]\nidle = 30\nhalf_closed = 1\nreset = 1\n"
            f'[[service]]\nname = "web"\nvip = "{VIP}"\nport = 80\ndscp = {DSCP}\n'
            f"[service.check]\ninterval = 1\n{backends}")
        self.balancer = self.start()

    def start(self, *flags: str) -> Process:
        self.balancer = self.lab.start_balancer(
            "--config", str(self.config), *flags, defaults=False)
        return self.balancer

    def restart(self) -> None:
        self.balancer.stop(signal.SIGUSR2)
        self.start()

    @property
    def socket(self) -> Path:
        return Path(f"/run/l3dsr/balancer@{self.lab.balancer.namespace}.sock")

    @property
    def kept(self) -> Path:
        return Path(f"/var/lib/l3dsr/balancer@{self.lab.balancer.namespace}.json")

    def say(self, *words: str, name: str = "balancer") -> str:
        return self.lab.balancer.run([*program(name), *words], timeout_s=60)

    def backend(self, number: int) -> dict:
        found = json.loads(self.say("backends", "--json"))["backends"]
        return next(each for each in found if each["id"] == number)

    def hosts(self) -> list[str]:
        return list(backends_of(self.lab, PATHS).values())


@pytest.fixture(scope="module", params=["portable", "adopt"])
def shared(request: pytest.FixtureRequest) -> Iterator[Site]:
    with Lab(pair=request.param) as lab:
        yield Site(lab)


# What no engine has a part in.
one_engine = pytest.mark.parametrize("shared", ["adopt"], indirect=True)


@pytest.fixture
def site(shared: Site) -> Site:
    """As it is when nobody has ordered anything."""
    shared.say("enable", "1")
    shared.say("weight", "1", "default")
    return shared


class Open:
    """Connections that stay, some to each backend."""

    def __init__(self, site: Site, count: int = 12) -> None:
        self._client = site.lab.client
        self.sockets = [connect(self._client) for _ in range(count)]
        self.hosts = [self.ask(one, f"/{number}") for number, one in enumerate(self.sockets)]
        assert set(self.hosts) == {"backend1", "backend2"}

    @staticmethod
    def ask(one: socket.socket, path: str) -> str:
        one.sendall(request(path))
        return one_answer(one).split()[0].decode()

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def test_a_drained_backend_gets_no_new_flow_and_loses_none(site: Site) -> None:
    kept_open, ended, failed = Open(site), threading.Event(), []
    before = site.hosts()

    def go_on() -> None:
        while not ended.is_set():
            try:
                site.hosts()
            except Exception as error:
                failed.append(error)

    traffic = threading.Thread(target=go_on)
    traffic.start()
    site.say("drain", "192.168.33.20")
    meanwhile = site.hosts()
    after = [kept_open.ask(one, "/again") for one in kept_open.sockets]
    ended.set()
    traffic.join()

    assert not failed
    assert set(before) == {"backend1", "backend2"}
    assert set(meanwhile) == {"backend2"}
    assert after == kept_open.hosts
    drained = site.backend(1)
    assert (drained["state"], drained["share"]) == ("draining", 0)
    assert drained["flows"] >= kept_open.hosts.count("backend1")
    with pytest.raises(RuntimeError, match=r"flows are left after 0\.5 s; it stays draining"):
        site.say("drain", "1", "--wait", "--timeout", "0.5")
    kept_open.close()
    assert json.loads(site.say("drain", "1", "--wait", "--json"))["backends"][0]["flows"] == 0
    site.say("undrain", "1")
    assert site.hosts() == before


def test_a_disabled_backends_flows_are_reset_at_their_next_packet(site: Site) -> None:
    kept_open = Open(site)

    site.say("disable", "1", "--service", "web")

    for one, host in zip(kept_open.sockets, kept_open.hosts, strict=True):
        if host == "backend1":
            with pytest.raises(ConnectionResetError):
                kept_open.ask(one, "/again")
        else:
            assert kept_open.ask(one, "/again") == host
    assert set(site.hosts()) == {"backend2"}
    kept_open.close()
    site.say("enable", "1")
    assert set(site.hosts()) == {"backend1", "backend2"}


def test_a_weight_moves_the_share(site: Site) -> None:
    before = site.hosts()

    table = site.say("weight", "1", "3")

    after = site.hosts()
    assert re.search(r"web +1 +192.168.33.20 +up +3 \(not 1\) +75.0%", table)
    assert after.count("backend1") > before.count("backend1") + 5
    site.say("weight", "1", "default")
    assert site.hosts() == before


@one_engine
def test_orders_are_gone_with_the_process_unless_they_are_kept(site: Site) -> None:
    site.say("disable", "1")
    site.restart()
    assert site.backend(1)["operator"] == "enabled"

    site.say("drain", "1", "--keep")
    site.say("weight", "2", "7", "--keep")
    mode = site.kept.stat().st_mode & 0o777
    site.restart()
    restarted = site.backend(1), site.backend(2), set(site.hosts())
    site.say("undrain", "1")
    site.say("weight", "2", "default")
    site.restart()

    assert mode == 0o600
    assert [each["operator"] for each in restarted[:2]] == ["draining", "enabled"]
    assert (restarted[1]["weight"], restarted[2]) == (7, {"backend2"})
    assert not site.kept.exists()
    assert site.backend(1)["operator"] == "enabled"
    assert set(site.hosts()) == {"backend1", "backend2"}


def curl(site: Site, path: str, *flags: str) -> str:
    return run(["curl", "-sS", "--max-time", "20", "--unix-socket", str(site.socket),
                f"http://localhost{path}", *flags])


def test_curl_asks_and_orders(site: Site) -> None:
    site.hosts()
    kept_open = Open(site, 16)

    drained = json.loads(curl(site, "/api/v1/drain", "-d", '{"backend": 1}'))["backends"]
    health = json.loads(curl(site, "/api/v1/health"))["backends"]
    flows = json.loads(curl(site, "/api/v1/flows?client=192.168.33.0/24&backend=2&limit=2"))
    none = json.loads(curl(site, "/api/v1/flows?client=10.0.0.0/8"))

    assert [each["state"] for each in drained] == ["draining"]
    assert curl(site, "/healthz") == "ready\n"
    assert {each["id"] for each in health} == {1, 2}
    assert len(flows["flows"]) == 2
    assert flows["more"] is True
    assert {each["backend"] for each in flows["flows"]} == {2}
    assert (none["flows"], none["more"]) == ([], False)
    kept_open.close()
    wait_until(lambda: json.loads(curl(site, "/api/v1/reasons"))["handoff"] >= len(PATHS),
               PATIENCE_S, "counted")
    for path, body, error in (
        ("drain", '{"backend": 9}', "there is no backend 9; there are: 1 (192.168.33.20), 2"),
        ("drain", '{"backend": 1, "service": "x"}', "there is no service x; there are: web"),
        ("drain", "{}", "backend: an id or an address is needed"),
        ("drain", "[]", "the body is no JSON object"),
        ("weight", '{"backend": 1, "weight": -1}', "weight: a whole number from 0 to 65535"),
        ("fly", "{}", "there is no /api/v1/fly; there are: "),
    ):
        assert error in json.loads(curl(site, f"/api/v1/{path}", "-d", body))["error"]


@one_engine
def test_the_metrics_address_changes_nothing(site: Site) -> None:
    url = "http://127.0.0.1:9101"
    node = site.lab.balancer

    refused = json.loads(node.curl(f"{url}/api/v1/drain", "-d", '{"backend": 1}'))

    assert "there is no /api/v1/drain" in refused["error"]
    assert json.loads(node.curl(f"{url}/api/v1/backends"))["backends"][0]["state"] == "up"
    assert node.curl(f"{url}/healthz") == "ready\n"
    assert "l3dsr_balancer_flows" in node.curl(f"{url}/metrics")


@one_engine
def test_the_socket_is_roots_and_a_killed_daemons_is_replaced(site: Site) -> None:
    found = site.socket.stat()
    tried = subprocess.run(
        [sys.executable, "-c", "import socket, sys; s = socket.socket(socket.AF_UNIX); "
         "s.connect(sys.argv[1])", str(site.socket)],
        user=NOBODY, group=NOBODY, extra_groups=(), text=True, capture_output=True, check=False)

    site.balancer.kill()
    left = site.socket.exists()
    with pytest.raises(RuntimeError, match=r"exit code 3: .*no balancer runs here"):
        site.say("status")
    site.start()

    assert (found.st_mode & 0o7777, found.st_uid) == (0o660, 0)
    assert "PermissionError" in tried.stderr
    assert left
    assert json.loads(site.say("status", "--json"))["pid"] == site.balancer.pid
    site.balancer.stop()
    assert not site.socket.exists()
    site.start("--control", "false")
    assert not site.socket.exists()
    site.balancer.stop()
    site.start()


@one_engine
def test_slow_clients_take_no_descriptors(site: Site) -> None:
    directory = f"/proc/{site.balancer.pid}/fd"
    before = len(os.listdir(directory))
    slow = []
    for _ in range(100):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(site.socket))
        try:
            client.send(b"POST /api/v1/drain HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        except OSError:
            pass  # it was ended already
        slow.append(client)

    wait_until(lambda: len(os.listdir(directory)) < before + 20, PATIENCE_S, "they are ended")

    assert json.loads(site.say("status", "--json"))["state"] == "ready"
    assert set(site.hosts()) == {"backend1", "backend2"}
    for client in slow:
        client.close()


def test_commands_show_what_there_is(site: Site) -> None:
    kept_open = Open(site)
    wait_until(lambda: bool(site.backend(2)["check"]["passed"]), PATIENCE_S, "checked")

    status, services, backends, health, flows = (
        site.say(*words) for words in (
            ["status"], ["services"], ["backends", "--service", "web"], ["health"],
            ["flows", "--limit", "2", "--client", "192.168.33.1"]))

    assert re.search(r"^state +ready, for .*, pid \d+, version \d", status, re.MULTILINE)
    assert re.search(r"^backends +2 up$", status, re.MULTILINE)
    assert re.search(r"^web +192.168.33.10:80 +http.path +maglev .* 2 up$", services, re.MULTILINE)
    assert re.search(r"^web +2 +192.168.33.21 +up +1 +50.0% ", backends, re.MULTILINE)
    assert re.search(r"^web +2 +192.168.33.21 +up +yes .* ms ", health, re.MULTILINE)
    kept_open.close()
    assert len(re.findall(r"^192\.168\.33\.1:\d+ +web +\d ", flows, re.MULTILINE)) == 2


def test_top_shows_what_flows(site: Site) -> None:
    ended = threading.Event()
    traffic = threading.Thread(target=lambda: [site.hosts() for _ in range(100)
                                               if not ended.is_set()])
    traffic.start()
    try:
        shown = site.say("top", "--once", "--interval", "1")
    finally:
        ended.set()
        traffic.join()

    rows = re.findall(r"web +(\d) +192\.168\.33\.2\d +up +50\.0% +[\d,]+ +([\d.]+) +([\d.]+\S*)",
                      shown)
    assert {row[0] for row in rows} == {"1", "2"}, shown
    assert all(float(row[1]) > 0 for row in rows)
    assert re.search(r"handoff +[\d.]*[1-9]", shown)


def test_a_bridge_shows_what_it_serves(site: Site) -> None:
    backend = site.lab.backend1
    kept_open = Open(site)

    status, services, flows = (
        json.loads(backend.run([*program("packetbridge"), name, "--json"]))
        for name in ("status", "services", "flows"))

    assert (status["program"], status["state"]) == ("packetbridge", "ready")
    assert services["services"][0]["vip"] == VIP
    assert services["services"][0]["mode"] in ("splice", "adopt")
    if services["services"][0]["mode"] == "splice":
        assert len(flows["flows"]) >= kept_open.hosts.count("backend1")
    kept_open.close()

