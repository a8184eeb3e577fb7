"""What cannot work on a host is refused, by `check` and before a program changes anything."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from balancer import cli as balancer_cli
from balancer import config as balancer_config
from common.settings.table import Table
from packetbridge import cli as bridge_cli
from packetbridge import config as bridge_config

PROGRAMS = {
    "balancer": (balancer_cli, balancer_config), "packetbridge": (bridge_cli, bridge_config),
}
COMMANDS = pytest.mark.parametrize("command", [[], ["check"]], ids=["run", "check"])
BOTH = pytest.mark.parametrize("name", PROGRAMS)

BALANCER = """
interface = "eth0"
[[service]]
vip = "192.0.2.10"
port = 80
[[service.backend]]
id = 1
address = "192.0.2.20"
"""
BRIDGE = """
interface = "eth0"
[[service]]
vip = "192.0.2.10:80"
server = "192.0.2.30:8080"
"""
TEXTS = {"balancer": BALANCER, "packetbridge": BRIDGE}


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_host: Callable) -> None:
    """Nothing is on this host but what a test puts there."""
    for _, config in PROGRAMS.values():
        monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "default.toml")
    set_host(eth0="192.0.2.11/24")


@pytest.fixture
def faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a program says of a file, line by line, without its own name and the file's."""
    def say(name: str, command: list[str], text: str, *flags: str) -> list[str]:
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        assert PROGRAMS[name][0].main([*command, "--config", str(path), *flags]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith(f"{name}: ") for line in lines)
        return [line.removeprefix(f"{name}: ").removeprefix(f"{path}: ") for line in lines]
    return say


# --- without a file ---


@BOTH
@COMMANDS
def test_a_strange_host_is_told_which_lines_are_missing(
    name: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, config = PROGRAMS[name]

    code = module.main(command)

    first, *lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert first.startswith(f"{name}: {config.DEFAULT_FILE}: service = None: expected a file ")
    assert "192.168.33.0/24" in first
    assert lines[0].strip() == 'interface = "eth0"'
    loaded = config.read(Table("example", tomllib.loads("\n".join(lines))))
    assert len(loaded.services) == 1
    assert len(lines) in (4, 5)


@BOTH
def test_the_line_of_an_interface_that_is_there_is_not_missing(
    name: str, set_host: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    set_host(eth1="203.0.113.5/24")

    code = PROGRAMS[name][0].main([])

    text = capsys.readouterr().err
    assert code == 2
    assert "eth1 has 203.0.113.5/24" in text
    assert "interface =" not in text


@BOTH
def test_an_interface_in_the_labs_network_is_enough(
    name: str, set_host: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    balancer_cli.main(["keygen", str(secret)])
    set_host(enp0s8="192.168.33.77/24")

    code = PROGRAMS[name][0].main(
        ["check", "--interface", "enp0s8", "--secret-file", str(secret)])

    assert code == 0
    assert "192.168.33.10:80" in capsys.readouterr().out


@COMMANDS
@pytest.mark.parametrize("name, flags, missing", [
    ("balancer", ["--vip", "192.0.2.10"], "--backend = None"),
    ("balancer", ["--backend", "192.0.2.20"], "--vip = None"),
    ("packetbridge", ["--vip", "3=192.0.2.10:80"], "--server = None"),
    ("packetbridge", ["--server", "192.0.2.11:8080"], "--vip = None"),
])
def test_elsewhere_flags_have_no_defaults_of_the_lab(
    name: str, command: list[str], flags: list[str], missing: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = PROGRAMS[name][0].main([*command, "--interface", "eth0", *flags])

    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"{name}: command line: {missing}: expected ")


def test_what_uses_nothing_of_the_host_may_be_tried_anywhere(
    capsys: pytest.CaptureFixture[str]
) -> None:
    code = balancer_cli.main(["explain", "/a"])

    out, err = capsys.readouterr()
    assert code == 0
    assert "192.168.33.10:80" in out
    assert err.endswith("this is about the Vagrantfile's network\n")


# --- what is on the host ---


@BOTH
@COMMANDS
def test_packets_of_clients_do_not_come_in_by_the_loopback(
    name: str, command: list[str], faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults(name, command, TEXTS[name], "--interface", "lo")

    assert fault.startswith("command line: --interface = 'lo': expected an interface that ")
    assert fault.endswith(": eth0")


@BOTH
def test_a_program_names_the_interfaces_that_there_are(
    name: str, faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults(name, [], TEXTS[name], "--interface", "eth7")

    assert fault == "command line: --interface = 'eth7': expected an interface of this host: eth0"


@COMMANDS
def test_a_balancer_is_not_its_own_backend(
    command: list[str], faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults("balancer", command, BALANCER.replace("192.0.2.20", "192.0.2.11"))

    assert fault == (
        "service[0].backend[0].address = '192.0.2.11': expected the address of another host, where "
        "the packetbridge runs: 192.0.2.11 is this host's own, on eth0"
    )


@COMMANDS
def test_a_hosts_own_address_is_no_vip(
    command: list[str], faults: Callable[..., list[str]]
) -> None:
    found = faults("balancer", command, BALANCER.replace("192.0.2.10", "192.0.2.11"))

    assert found[0].startswith("service[0].vip = '192.0.2.11': expected an address that no host ")


def test_a_vip_that_a_program_left_there_is_none_of_the_hosts_own(
    set_host: Callable, tmp_path: Path
) -> None:
    set_host(eth0="192.0.2.11/24 192.0.2.10/32")
    path = tmp_path / "balancer.toml"
    path.write_text(BALANCER)
    secret = tmp_path / "secret"
    balancer_cli.main(["keygen", str(secret)])

    assert balancer_cli.main(["check", str(path), "--secret-file", str(secret)]) == 0


@COMMANDS
def test_a_balancer_needs_an_address_besides_its_vips(
    command: list[str], set_host: Callable, faults: Callable[..., list[str]]
) -> None:
    set_host(eth0="192.0.2.10/32")

    (fault,) = faults("balancer", command, BALANCER)

    assert fault.startswith("interface = 'eth0': expected one of a host that has an address ")


@COMMANDS
def test_a_vip_is_not_the_bridges_own_address(
    command: list[str], faults: Callable[..., list[str]]
) -> None:
    found = faults("packetbridge", command, BRIDGE, "--address", "192.0.2.10")

    assert "--address = '192.0.2.10': expected the bridge's own address" in found[0]


@COMMANDS
def test_a_vip_on_the_bridges_interface_would_answer_arp(
    command: list[str], set_host: Callable, faults: Callable[..., list[str]]
) -> None:
    set_host(eth0="192.0.2.20/24 192.0.2.10/32")

    (fault,) = faults("packetbridge", command, BRIDGE)

    assert fault.startswith("service[0].vip = '192.0.2.10:80': expected one that this host ")
    assert "ip address del 192.0.2.10" in fault


@COMMANDS
def test_what_is_adopted_is_on_this_host(
    command: list[str], faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults("packetbridge", command, 'mode = "adopt"' + BRIDGE)

    assert fault == (
        "service[0].server = '192.0.2.30:8080': expected an address of this host, since mode is "
        "adopt; for a server behind this host mode has to be auto or splice"
    )


@COMMANDS
def test_a_bridges_address_is_its_interfaces(
    command: list[str], faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults("packetbridge", command, BRIDGE, "--address", "192.0.2.99")

    assert fault == (
        "command line: --address = '192.0.2.99': expected an address of eth0: 192.0.2.11"
    )


@COMMANDS
def test_a_bridge_needs_an_address_besides_the_servers(
    command: list[str], set_host: Callable, faults: Callable[..., list[str]]
) -> None:
    set_host(eth0="192.0.2.30/24")

    (fault,) = faults("packetbridge", command, BRIDGE.replace(":8080", ":80"))

    assert fault.startswith("interface = 'eth0': expected an interface with an IPv4 address ")


@COMMANDS
@pytest.mark.parametrize("old, new, key", [
    ("192.0.2.20", "192.0.2.255", "service[0].backend[0].address"),
    ("192.0.2.20", "192.0.2.0", "service[0].backend[0].address"),
    ("192.0.2.10", "192.0.2.255", "service[0].vip"),
])
def test_a_networks_own_addresses_are_no_hosts(
    command: list[str], old: str, new: str, key: str, faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults("balancer", command, BALANCER.replace(old, new))

    assert fault == (f"{key} = '{new}': expected the address of one host, which {new} is not in "
                     "192.0.2.0/24, the network at eth0")


@COMMANDS
def test_a_server_at_the_vip_would_send_connections_round(
    command: list[str], faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults("packetbridge", command, BRIDGE.replace("192.0.2.30", "192.0.2.10"))

    assert fault.startswith("service[0].server = '192.0.2.10:8080': expected the server's own ")


def test_a_server_may_have_the_vip_where_this_host_has_it(
    set_host: Callable, tmp_path: Path
) -> None:
    set_host(lo="192.0.2.10/32", eth0="192.0.2.20/24")
    path = tmp_path / "bridge.toml"
    path.write_text(BRIDGE.replace("192.0.2.30", "192.0.2.10"))

    loaded = bridge_config.load(str(path), host=bridge_cli.host.look())

    assert str(loaded.services[0].server) == "192.0.2.10"


@COMMANDS
def test_a_server_is_not_where_handoffs_go(
    command: list[str], faults: Callable[..., list[str]]
) -> None:
    text = BRIDGE.replace("192.0.2.30:8080", "192.0.2.11:80")

    (fault,) = faults("packetbridge", command, text, "--address", "192.0.2.11")

    assert fault.startswith("service[0].server = '192.0.2.11:80': expected another address or port")


# --- what is no address ---


@BOTH
@COMMANDS
@pytest.mark.parametrize("value, remedy", [
    ("192.0.2.20:8080", "an address alone, such as 192.0.2.20; "),
    ("www.example.org", "names are not looked up (`getent ahostsv4 www.example.org` does it)"),
    ("localhost", "names are not looked up"),
    ("192.0.2.20/24", "without a prefix length"),
    ("127.0.0.1", "an address that other hosts can reach"),
    ("192.0.2.256", "the IPv4 address of a host, such as 192.168.33.10"),
])
def test_what_is_no_address_is_refused_with_what_would_be(
    name: str, command: list[str], value: str, remedy: str, faults: Callable[..., list[str]]
) -> None:
    flags = ["--address", value] if name == "packetbridge" else []
    text = TEXTS[name].replace("192.0.2.20", value)

    (fault,) = faults(name, command, text, *flags)

    assert f"address = '{value}': expected " in fault
    assert remedy in fault


@pytest.mark.parametrize("key, text, remedy", [
    ("vip", BALANCER.replace("192.0.2.10", "192.0.2.10:80"), "the port goes into `port`"),
    ("backend[0].address", BALANCER.replace("192.0.2.20", "192.0.2.20:80"),
     "the server's port goes into the bridge's `server`"),
])
def test_a_port_is_told_where_it_goes(
    key: str, text: str, remedy: str, faults: Callable[..., list[str]]
) -> None:
    (fault,) = faults("balancer", ["check"], text)

    assert fault.startswith(f"service[0].{key} = ")
    assert fault.endswith(remedy)


# --- all at once ---


def test_all_faults_of_a_balancers_file_are_said_at_once(
    faults: Callable[..., list[str]]
) -> None:
    found = faults("balancer", ["check"], """
interface = "eth0"
intrface = "eth1"
max_flows = "many"
[timeouts]
idle = -1
[[service]]
vip = "www"
port = 80
dscp = 64
[[service.backend]]
address = "192.0.2.20"
[[service.backend]]
id = 2
address = "192.0.2.11"
weight = 1.5
[[service]]
vip = "192.0.2.12"
port = 80
dscp = 7
hash_balance_factor = 150
scheduler = "random"
[[service.backend]]
id = 1
address = "192.0.2.20"
[[service]]
vip = "192.0.2.13"
port = 80
dscp = 7
""")

    assert [fault.partition(" = ")[0] for fault in found] == [
        "max_flows", "timeouts.idle", "service[0].vip", "service[0].dscp",
        "service[0].backend[0].id", "service[0].backend[1].weight", "intrface",
        "service[2].dscp", "service[1].hash_balance_factor", "service[2].backend",
        "service[0].backend[1].address",
    ]


def test_all_faults_of_a_bridges_file_are_said_at_once(
    faults: Callable[..., list[str]]
) -> None:
    found = faults("packetbridge", ["check"], """
interface = "lo"
mode = "adopt"
engine = "portable"
address = "192.0.2.10"
[[service]]
vip = "192.0.2.10:80"
server = "nginx:80"
[[service]]
vip = "192.0.2.10"
sever = "192.0.2.30:80"
""")

    assert [fault.partition(" = ")[0] for fault in found] == [
        "service[0].server", "service[1].vip", "service[1].server", "service[1].sever",
        "service[1].dscp", "mode", "address", "interface",
    ]


def test_check_does_not_judge_a_file_that_is_for_another_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, secret = tmp_path / "bridge.toml", tmp_path / "secret"
    path.write_text(('mode = "adopt"' + BRIDGE).replace("eth0", "eth7"))
    balancer_cli.main(["keygen", str(secret)])

    code = bridge_cli.main(["check", str(path), "--secret-file", str(secret)])

    assert code == 0
    assert "warning: " in capsys.readouterr().err
