"""What the doctors say of a kernel that lacks something: the real programs, on each kernel."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from lab.node import Node, wait_until
from lab.topology import DSCP, VIP, Backend, Lab, program

pytestmark = pytest.mark.kernels
PATIENCE_S = 300.0  # emulated


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=1, pair="auto") as made:
        yield made


def doctor(node: Node, name: str, *flags: str) -> list[dict[str, str]]:
    done = node.popen([*program(name), "doctor", "--json", *flags], stdout=-1, text=True)
    out, _ = done.communicate(timeout=PATIENCE_S)
    complaints: list[dict[str, str]] = json.loads(out)["complaints"]
    return complaints


def adopts(backend: Backend) -> bool:
    """Whether this kernel has what adopting takes, asked of the kernel itself."""
    return " bpf_sk_assign_tcp_reqsk" in backend.run(
        ["sh", "-c", "grep -m1 ' bpf_sk_assign_tcp_reqsk$' /proc/kallsyms || true"])


def test_a_kernel_that_cannot_adopt_is_named_with_what_that_costs(lab: Lab) -> None:
    backend = lab.backends[0]
    server = f"{backend.server}:8080"
    backend.start("listen", ["python3", "-c", "import socket, sys, time\n"
                             f"made = socket.create_server(({backend.server!r}, 8080))\n"
                             "time.sleep(3600)"]).wait_for_listener(backend.server, 8080)
    service = ["--vip", f"{DSCP}={VIP}:80", "--server", server]
    lab.start_bridge(backend, *service, defaults=False, ready=False).wait_for("ready", PATIENCE_S)
    found: list[dict[str, str]] = []

    def has_answered() -> bool:  # an emulated one may take longer than a doctor waits
        found[:] = doctor(backend, "packetbridge", "--interface", "eth1", "--secret-file",
                          str(lab.secret_file), *service)
        return not any("does not answer" in each["sentence"] for each in found)

    wait_until(has_answered, PATIENCE_S, "the bridge answers")

    named = [each for each in found if "is spliced" in each["sentence"]]
    assert bool(named) is not adopts(backend)
    for each in named:
        assert each["severity"] == "note"
        assert each["sentence"].startswith(f"{VIP}:80 is spliced, so ")
        assert "Linux 6.9 and later can" in each["remedy"]


def test_an_interface_that_joins_packets_is_named_with_what_ends_that(lab: Lab) -> None:
    """A bond is the device without hardware that can be told to."""
    node = lab.balancer
    try:
        node.run(["ip", "link", "add", "bond7", "type", "bond"])
        node.run(["ethtool", "-K", "bond7", "lro", "on"])
    except RuntimeError as error:
        pytest.skip(f"this kernel has no interface that joins packets: {error}")
    node.run(["ip", "addr", "add", "192.0.2.1/24", "dev", "bond7"])
    flags = ["--interface", "bond7", "--vip", "192.0.2.10", "--backend", "192.0.2.20",
             "--secret-file", str(lab.secret_file)]

    before = doctor(node, "balancer", *flags)
    node.run(["ethtool", "-K", "bond7", "lro", "off"])
    after = doctor(node, "balancer", *flags)

    named = [[each for each in found if "joins packets" in each["sentence"]]
             for found in (before, after)]
    assert [len(each) for each in named] == [1, 0]
    assert named[0][0]["sentence"].startswith("bond7 joins packets (large receive offload)")
    assert named[0][0]["remedy"] == "ethtool -K bond7 lro off"


def test_a_clock_that_nobody_keeps_is_named_where_it_is_so(lab: Lab) -> None:
    """As the kernel says it to another program, or by the sentence's absence."""
    said = subprocess.run(["python3", "-c", _STATUS], stdout=-1, text=True, check=True).stdout

    found = doctor(lab.balancer, "balancer", "--interface", "eth1", "--vip", VIP, "--backend",
                   lab.backends[0].address, "--secret-file", str(lab.secret_file))

    named = [each for each in found if each["sentence"] == "nothing keeps this host's clock right"]
    assert bool(named) is (said.strip() == "unsynchronised")
    assert all("let NTP run" in each["remedy"] for each in named)


_STATUS = """
import ctypes
octets = (ctypes.c_int * 128)()  # struct timex of 64 bits: modes, 4 longs, status
state = ctypes.CDLL(None).adjtimex(octets)
print("unsynchronised" if state == 5 or octets[10] & 0x40 else "synchronised")
"""
