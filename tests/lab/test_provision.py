"""The Vagrant boxes without a hypervisor: fresh Debian 13 roots, provisioned by the same scripts.

Each boots its own systemd in a host of the lab, so the units, their hardening and the order
in which they start are the real ones.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import debian
from lab.node import REPOSITORY, Process, wait_until
from lab.topology import BALANCER, CLIENT, VIP, Lab, bridge_address, server_address

pytestmark = [
    pytest.mark.root, pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("debootstrap"), reason="this system has no debootstrap"),
]

# As the Vagrantfile calls them.
BOXES = {
    "balancer": ["balancer.sh", BALANCER, VIP, bridge_address(1), bridge_address(2)],
    "backend1": ["backend.sh", bridge_address(1), server_address(1), VIP],
    "backend2": ["backend.sh", bridge_address(2), server_address(2), VIP],
}
UNITS = {
    "balancer": ["l3dsr-balancer.service"],
    "backend1": ["l3dsr-server-address.service", "nginx.service", "l3dsr-packetbridge.service"],
    "backend2": ["l3dsr-server-address.service", "nginx.service", "l3dsr-packetbridge.service"],
}
SECRET = {"L3DSR_SECRET": "00112233445566778899aabbccddeeff"}


def provision(root: debian.Root, script: str, *arguments: str) -> str:
    """Run a script as Vagrant does. Returns: what it printed."""
    done = root.run(["bash", f"/vagrant/lab/provision/{script}", *arguments], SECRET)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, debian.Root]]:
    """The three boxes, provisioned. What they have in common is installed once, and copied."""
    directory = tmp_path_factory.mktemp("boxes")
    (directory / "common").mkdir()
    common = debian.Root(directory / "common")
    common.copy_project("/vagrant")
    done = common.run(["bash", "-c", ". /vagrant/lab/provision/common.sh && install_programs"])
    assert done.returncode == 0, done.stdout[-4000:]
    made = {}
    for name, words in BOXES.items():
        made[name] = common.copy(directory / name)
        provision(made[name], *words)
    yield made
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def network() -> Iterator[Lab]:
    """Hosts with the addresses that Vagrant gives; the server's is for provisioning to add."""
    with Lab() as lab:
        for backend in lab.backends:
            backend.run(["ip", "address", "delete", f"{backend.server}/24", "dev", "eth1"])
        yield lab


@pytest.fixture(scope="module")
def booted(boxes: dict[str, debian.Root], network: Lab) -> Iterator[dict[str, Process]]:
    """The boxes as hosts of the lab, with all their units active."""
    running = {name: root.boot(network.node(name)) for name, root in boxes.items()}
    try:
        for name, root in boxes.items():
            wait_for_units(root, running[name], UNITS[name])
        yield running
    finally:
        for process in running.values():
            debian.Root.halt(process)


def wait_for_units(root: debian.Root, process: Process, units: list[str]) -> None:
    """Wait until all are active. Raises: AssertionError with what systemd says."""
    def active() -> bool:
        states = root.inside(process, ["systemctl", "is-active", *units]).stdout.split()
        return states == ["active"] * len(units)

    try:
        wait_until(active, 60, "units are active")
    except TimeoutError:
        named = [word for unit in units for word in ("-u", unit)]
        log = root.inside(process, ["journalctl", "--no-pager", "-o", "cat", "-n60", *named])
        pytest.fail(log.stdout)


@pytest.mark.parametrize("name", BOXES)
def test_the_programs_are_commands_that_need_no_argument(
    boxes: dict[str, debian.Root], name: str
) -> None:
    command = "balancer" if name == "balancer" else "packetbridge"

    done = boxes[name].run([command, "check"])

    assert done.returncode == 0, done.stdout
    assert f"{VIP}:80" in done.stdout
    if name != "balancer":
        assert f"{server_address(int(name[-1]))}:80" in done.stdout


@pytest.mark.parametrize("name", BOXES)
def test_the_secret_is_roots_alone(boxes: dict[str, debian.Root], name: str) -> None:
    path = boxes[name].path / "etc/l3dsr/secret"

    assert path.read_text().strip() == SECRET["L3DSR_SECRET"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", BOXES)
def test_the_units_start_with_the_system(boxes: dict[str, debian.Root], name: str) -> None:
    states = boxes[name].run(["systemctl", "is-enabled", *UNITS[name]]).stdout.split()

    assert states == ["enabled"] * len(UNITS[name])


@pytest.mark.parametrize("name", BOXES)
def test_the_units_documentation_is_there(boxes: dict[str, debian.Root], name: str) -> None:
    unit = boxes[name].path / "etc/systemd/system" / UNITS[name][-1]

    (path,) = re.findall(r"^Documentation=file:/(\S+)$", unit.read_text(), re.MULTILINE)

    assert "## Configuration" in (boxes[name].path / path).read_text()


@pytest.mark.parametrize("name", BOXES)
def test_provisioning_again_changes_nothing(boxes: dict[str, debian.Root], name: str) -> None:
    before = state_of(boxes[name].path)

    printed = provision(boxes[name], *BOXES[name])

    assert state_of(boxes[name].path) == before
    assert "installing" not in printed


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    """Every file of the settings and the programs, with its time of change and inode."""
    found = {}
    for top in ("etc/l3dsr", "etc/systemd/system", "etc/nginx", "opt/l3dsr"):
        for path in (root / top).rglob("*"):
            if not path.is_dir() and "__pycache__" not in path.parts:
                status = path.lstat()
                found[str(path)] = (status.st_mtime_ns, status.st_ino)
    return found


def test_curl_from_the_host_is_answered_by_the_boxes(
    booted: dict[str, Process], network: Lab
) -> None:
    answers = [network.client.curl(f"http://{VIP}/{number}").split() for number in range(20)]

    assert {answer[0] for answer in answers} == {"backend1", "backend2"}
    assert [answer[1] for answer in answers] == [f"/{number}" for number in range(20)]
    assert {answer[2].rpartition(":")[0] for answer in answers} == {CLIENT}


@pytest.mark.parametrize("name, unit, words", [
    ("balancer", "l3dsr-balancer.service", "behind the fast one"),
    ("backend1", "l3dsr-packetbridge.service", "adopt, fast"),
])
def test_the_fast_engine_runs_under_the_units_hardening(
    booted: dict[str, Process], boxes: dict[str, debian.Root], name: str, unit: str, words: str
) -> None:
    log = boxes[name].inside(booted[name], ["journalctl", "-o", "cat", "-u", unit]).stdout

    assert words in log


@pytest.mark.parametrize("name, unit", [
    ("balancer", "l3dsr-balancer.service"), ("backend1", "l3dsr-packetbridge.service")
])
def test_a_killed_program_comes_back_by_itself(
    booted: dict[str, Process], boxes: dict[str, debian.Root], network: Lab, name: str, unit: str
) -> None:
    box = boxes[name], booted[name]
    show = ["systemctl", "show", "--value", "-p", "MainPID", unit]
    before = box[0].inside(box[1], show).stdout

    box[0].inside(box[1], ["systemctl", "kill", "--signal=KILL", unit])

    def is_back() -> bool:
        state = box[0].inside(box[1], ["systemctl", "is-active", unit]).stdout.strip()
        return state == "active" and box[0].inside(box[1], show).stdout != before

    wait_until(is_back, 30, f"{unit} is back")
    answers = {network.client.curl(f"http://{VIP}/{number}").split()[0] for number in range(20)}
    assert answers == {"backend1", "backend2"}


@pytest.mark.parametrize("name, unit", [
    ("balancer", "l3dsr-balancer.service"), ("backend1", "l3dsr-packetbridge.service")
])
def test_a_program_that_hangs_is_restarted(
    booted: dict[str, Process], boxes: dict[str, debian.Root], network: Lab, name: str, unit: str
) -> None:
    box = boxes[name], booted[name]
    show = ["systemctl", "show", "--value", "-p", "MainPID", unit]
    before = box[0].inside(box[1], show).stdout

    box[0].inside(box[1], ["systemctl", "kill", "--signal=STOP", unit])

    def is_back() -> bool:
        is_another = box[0].inside(box[1], show).stdout not in (before, "0\n")
        state = box[0].inside(box[1], ["systemctl", "is-active", unit]).stdout.strip()
        return is_another and state == "active"

    wait_until(is_back, 60, f"{unit} is back")
    assert "atchdog" in box[0].inside(box[1], ["journalctl", "-o", "cat", "-u", unit]).stdout
    answers = {network.client.curl(f"http://{VIP}/{number}").split()[0] for number in range(20)}
    assert answers == {"backend1", "backend2"}


@pytest.mark.parametrize("name, unit", [
    ("balancer", "l3dsr-balancer.service"), ("backend1", "l3dsr-packetbridge.service")
])
def test_a_program_has_the_four_rights_that_it_needs(
    booted: dict[str, Process], boxes: dict[str, debian.Root], name: str, unit: str
) -> None:
    box = boxes[name], booted[name]
    pid = box[0].inside(box[1], ["systemctl", "show", "--value", "-p", "MainPID", unit]).stdout

    status = box[0].inside(box[1], ["cat", f"/proc/{pid.strip()}/status"]).stdout

    needed = {12, 13, 38, 39}  # linux/capability.h: NET_ADMIN, NET_RAW, PERFMON, BPF
    effective = re.search(r"CapEff:\s*(\w+)", status)
    assert effective
    assert int(effective[1], 16) == sum(1 << right for right in needed)
    assert re.search(r"NoNewPrivs:\s*1", status)


def test_the_readme_names_the_units_that_there_are() -> None:
    readme = (REPOSITORY / "README.md").read_text()

    for unit in set(re.findall(r"l3dsr-[a-z-]+\.service", readme)):
        assert (REPOSITORY / "lab/systemd" / unit).exists()
