"""The lab itself: its network, its programs, its wires, and that it leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.impair import Fates, Impairment
from lab.node import REPOSITORY, namespaces
from lab.topology import CLIENT, SUBNET, Lab, sweep

pytestmark = pytest.mark.root


def test_every_host_reaches_every_address(lab: Lab) -> None:
    hosts = [lab.client, lab.balancer, *lab.backends]
    addresses = [f"{SUBNET}.{octet}" for octet in (1, 11, 20, 30, 21, 31)]

    for host in hosts:
        for address in addresses:
            # Nothing listens there, and only a host that is reached can say so.
            with pytest.raises(RuntimeError, match=r"exit code 7.*(refused|connect to server)"):
                host.curl(f"http://{address}:9/", timeout_s=5)


def test_nginx_says_who_answers_and_whom_it_sees(lab: Lab) -> None:
    lab.start_nginx(lab.backend2)

    name, uri, client, *_ = lab.client.curl(f"http://{lab.backend2.server}/some/path?q=1").split()

    assert (name, uri) == ("backend2", "/some/path?q=1")
    assert client.rpartition(":")[0] == CLIENT


def test_nginx_serves_files_and_takes_uploads(lab: Lab) -> None:
    lab.start_nginx(lab.backend1)
    content = os.urandom(300_000)
    (lab.files / "big").write_bytes(content)
    url = f"http://{lab.backend1.server}"

    lab.client.curl(f"{url}/files/big", "-o", str(lab.directory / "fetched"))
    lab.client.curl(f"{url}/upload/x/y", "-T", str(lab.files / "big"))

    assert (lab.directory / "fetched").read_bytes() == content
    assert (lab.directory / "nginx-backend1-80/upload/x/y").read_bytes() == content


def test_nginx_sees_the_server_name_of_tls(lab: Lab) -> None:
    lab.start_nginx(lab.backend1, tls=True)
    server = lab.backend1.server

    answer = lab.client.curl("https://b.lab.example/", "--cacert", str(lab.directory / "tls.crt"),
                             "--resolve", f"b.lab.example:443:{server}")

    assert answer.split()[-1] == "b.lab.example"


def test_access_log_has_the_clients_address(lab: Lab) -> None:
    lab.start_nginx(lab.backend1)

    lab.client.curl(f"http://{lab.backend1.server}/logged")

    log = (lab.directory / "nginx-backend1-80/access.log").read_text()
    assert log.startswith(CLIENT)
    assert "GET /logged" in log


def test_a_path_mtu_is_found_out_through_the_router() -> None:
    with Lab(path_mtu=1300) as lab:
        lab.start_nginx(lab.backend1)
        (lab.files / "big").write_bytes(bytes(1 << 20))

        lab.client.curl(f"http://{lab.backend1.server}/files/big", "-o", "/dev/null")

        exception = lab.backend1.run(["ip", "route", "get", "192.168.34.1"])
        assert "mtu 1300" in exception


def test_more_clients_and_balancers_have_addresses_of_their_own() -> None:
    with Lab(balancers=2, clients=2, backends=1) as lab:
        assert lab.balancer2.run(["ip", "-4", "-br", "addr", "show", "eth1"]).split()[2] == \
            f"{SUBNET}.12/24"
        assert lab.client2.run(["ip", "-4", "-br", "addr", "show", "eth1"]).split()[2] == \
            f"{SUBNET}.102/24"
        with pytest.raises(AttributeError, match="no backend2"):
            _ = lab.backend2


def test_mtu_is_that_of_every_interface() -> None:
    with Lab(backends=1, mtu=9000) as lab:
        for node in (lab.client, lab.balancer, lab.backend1):
            assert "mtu 9000" in node.run(["ip", "link", "show", "eth1"])


@pytest.mark.parametrize("wire", [
    {"loss": 0.05}, {"duplicate": 0.1}, {"reorder": 0.05}, {"loss": 0.05, "direction": "in"},
    {"loss": 0.03, "duplicate": 0.03, "reorder": 0.03, "delay_ms": 2.0},
], ids=str)
def test_a_bad_wire_harms_packets_but_no_content(wire: dict) -> None:
    with Lab(backends=1, impair={"client": wire}) as lab:
        lab.start_nginx(lab.backend1)
        content = os.urandom(3_000_000)
        (lab.files / "big").write_bytes(content)
        before = _tcp_trouble(lab)

        lab.client.curl(f"http://{lab.backend1.server}/files/big", "-o",
                        str(lab.directory / "fetched"), timeout_s=60)

        assert (lab.directory / "fetched").read_bytes() == content
        assert _tcp_trouble(lab) > before


def _tcp_trouble(lab: Lab) -> int:
    """Segments that were sent again, came twice, or came early."""
    counters = ("TcpRetransSegs", "TcpExtTCPOFOQueue", "TcpExtTCPDSACKRecv",
                "TcpExtTCPDSACKOldSent", "TcpExtTCPDSACKOfoSent")
    return sum(
        int(line.split()[1])
        for node in (lab.client, lab.backend1)
        for line in node.run(["nstat", "-az", *counters]).splitlines() if line[0] != "#"
    )


def test_the_nth_packet_of_a_seed_has_the_same_fate_in_every_run() -> None:
    wire = Impairment(loss=0.2, duplicate=0.2, reorder=0.2, seed=9)
    first, second, other = Fates(wire, "out"), Fates(wire, "out"), Fates(wire, "in")

    fates = [first.next() for _ in range(1000)]

    assert fates == [second.next() for _ in range(1000)]
    assert fates != [other.next() for _ in range(1000)]
    assert 150 < fates.count([]) < 250
    assert 100 < sum(len(fate) == 2 for fate in fates) < 220


def test_a_program_that_does_not_get_ready_is_quoted(lab: Lab) -> None:
    with pytest.raises(RuntimeError, match="exit code 3:\nno such luck"):
        lab.client.start("luckless", ["sh", "-c", "echo no such luck; exit 3"]).wait_for("ready")


def test_everything_is_gone_afterwards_whatever_happened() -> None:
    lab = Lab()
    started = []

    with pytest.raises(ZeroDivisionError), lab:
        fail_amid_running_programs(lab, started)

    assert namespaces(lab.prefix) == []
    assert not lab.directory.exists()
    assert started[0].wait(5) != 0


def fail_amid_running_programs(lab: Lab, started: list[subprocess.Popen]) -> None:
    """One that the lab knows of, one that it does not, and then a failure."""
    started.append(lab.client.popen(["sleep", "100"]))
    lab.client.run(["sh", "-c", "sleep 100 >/dev/null 2>&1 &"])
    raise ZeroDivisionError


def test_sweep_removes_what_a_killed_lab_left_and_spares_the_living(lab: Lab) -> None:
    killed = subprocess.run(
        [sys.executable, "-c",
         "import os; from lab.topology import Lab; lab = Lab(backends=1); lab.up(); "
         "lab.client.popen(['sleep', '100'], stdout=-3, stderr=-3); "
         "print(lab.prefix, lab.directory, flush=True); os.kill(os.getpid(), 9)"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )
    prefix, directory = killed.stdout.split()
    assert namespaces(prefix)

    sweep()

    assert namespaces(prefix) == []
    assert not Path(directory).exists()
    assert namespaces(lab.prefix)
