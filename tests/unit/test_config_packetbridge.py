"""The bridge's configuration: what is right, and what each mistake is answered with."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from packetbridge import cli, config

SERVICE = """
[[service]]
dscp = 3
vip = "192.0.2.10:80"
server = "192.0.2.30:8080"
"""
SECOND = """
[[service]]
dscp = 7
vip = "192.0.2.11:80"
server = "192.0.2.30:8081"
"""


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend_host: None) -> Path:
    """This host's own configuration counts in no test, nor do its addresses."""
    default = tmp_path / "default.toml"
    monkeypatch.setattr(config, "DEFAULT_FILE", default)
    return default


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "packetbridge.toml"
    path.write_text(text)
    return str(path)


def test_nothing_given_is_the_first_backend_of_the_lab() -> None:
    loaded = config.load()

    (service,) = loaded.services
    assert (service.dscp, str(service.vip), service.port) == (3, "192.168.33.10", 80)
    assert (str(service.server), service.server_port) == ("192.168.33.30", 80)
    assert (loaded.interface, loaded.address, loaded.mode) == ("eth1", None, "auto")


def test_flags_describe_several_vips_of_one_server() -> None:
    loaded = config.load(flags={
        "vip": ["3=192.0.2.10:80", "7=192.0.2.11:443"], "server": "192.0.2.30:8080",
        "address": "192.0.2.20",
    })

    assert [(service.dscp, str(service.vip), service.port) for service in loaded.services] == [
        (3, "192.0.2.10", 80), (7, "192.0.2.11", 443)]
    assert {(service.server, service.server_port) for service in loaded.services} == {
        (IPv4Address("192.0.2.30"), 8080)}
    assert loaded.address == IPv4Address("192.0.2.20")


def test_a_file_says_everything(tmp_path: Path) -> None:
    path = write(tmp_path, """
interface = "eth0"
address = "192.0.2.20"
secret_file = "/run/secret"
mode = "splice"
engine = "portable"
max_flows = 5
queue = 3
mark = 9
metrics = "127.0.0.1:9102"
log_level = "warning"
log_format = "json"

[timeouts]
idle = 60
closing = 3
reset = 2
replay = 1.5
""" + SERVICE + 'name = "shop"\nwscale = 9\n')

    loaded = config.load(path)

    assert loaded.timeouts == config.Timeouts(60_000, 3000, 2000, 1500)
    assert (loaded.services[0].name, loaded.services[0].wscale) == ("shop", 9)
    assert (loaded.mode, loaded.queue, loaded.mark) == ("splice", 3, 9)


# mistake → (text, key, value as it is shown, part of the remedy)
MISTAKES = {
    "unknown key": ('sever = "x"\n' + SERVICE, "sever", "'x'", "a key that there is"),
    "unknown key of a service": (SERVICE + 'sever = "x"\n',
                                 "service[0].sever", "'x'", "did you mean `server`?"),
    "text for a number": (SERVICE.replace("= 3", '= "3"'),
                          "service[0].dscp", "'3'", "a whole number from 1 to 63"),
    "dscp 64": (SERVICE.replace("= 3", "= 64"), "service[0].dscp", "64", "from 1 to 63"),
    "the same dscp twice": (SERVICE + SECOND.replace("= 7", "= 3"),
                            "service[1].dscp", "3", "a DSCP that no other service has"),
    "the same VIP and port twice": (SERVICE + SECOND.replace(".11", ".10"),
                                    "service[1].vip", "'192.0.2.10:80'",
                                    "a VIP and port that no other service has"),
    "VIP without a port": (SERVICE.replace("10:80", "10"),
                           "service[0].vip", "'192.0.2.10'", "ADDRESS:PORT"),
    "IPv6 VIP": (SERVICE.replace("192.0.2.10:80", "[2001:db8::1]:80"),
                 "service[0].vip", "'[2001:db8::1]:80'", "IPv6 is not carried yet"),
    "no server": ('[[service]]\nvip = "192.0.2.10:80"\n',
                  "service[0].server", "None", "this key is required"),
    "no service": ("max_flows = 3\n", "service", "None", "at least one [[service]]"),
    "window scale above 14": (SERVICE + "wscale = 15\n",
                              "service[0].wscale", "15", "from 0 to 14"),
    "adopt by the portable engine": ('mode = "adopt"\nengine = "portable"\n' + SERVICE,
                                     "mode", "'adopt'", "auto or splice"),
    "mark that leaves no room for the next one": ("mark = 4294967295\n" + SERVICE,
                                                  "mark", "4294967295", "to 4294967294"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", [[], ["check"]], ids=["run", "check"])
def test_a_mistake_in_the_file_is_one_line_and_exit_code_2(
    mistake: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, key, value, remedy = MISTAKES[mistake]
    path = write(tmp_path, text)

    code = cli.main([*command, "--config", path])

    message = capsys.readouterr().err
    assert code == 2
    assert message.startswith(f"packetbridge: {path}: {key} = {value}: expected ")
    assert remedy in message
    assert message.count("\n") == 1


FLAG_MISTAKES = [
    (["--vip", "192.0.2.1:80"], "--vip = '192.0.2.1:80'", "DSCP=ADDRESS:PORT"),
    (["--vip", "x=192.0.2.1:80"], "--vip = 'x'", "a whole number from 1 to 63"),
    (["--vip", "3=192.0.2.1"], "--vip = '192.0.2.1'", "ADDRESS:PORT"),
    (["--vip", "3=192.0.2.1:80", "--vip", "3=192.0.2.2:80"], "--vip = 3",
     "a DSCP that no other service has"),
    (["--server", "192.0.2.1:0"], "--server = '192.0.2.1:0'", "a whole number from 1 to 65535"),
    (["--mode", "adopt", "--engine", "portable"], "--mode = 'adopt'", "auto or splice"),
    (["--address", "::1"], "--address = '::1'", "IPv6 is not carried yet"),
]


@pytest.mark.parametrize("flags, what, remedy", FLAG_MISTAKES,
                         ids=[" ".join(flags) for flags, _, _ in FLAG_MISTAKES])
def test_a_mistake_in_a_flag_names_the_flag(
    flags: list[str], what: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(flags)

    message = capsys.readouterr().err
    assert code == 2
    assert message.startswith(f"packetbridge: command line: {what}: expected ")
    assert remedy in message


def test_flags_that_describe_a_service_are_refused_beside_a_file_with_services(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, SERVICE)

    code = cli.main(["--config", path, "--server", "192.0.2.30:81"])

    assert code == 2
    assert f"since {path} has [[service]]" in capsys.readouterr().err
