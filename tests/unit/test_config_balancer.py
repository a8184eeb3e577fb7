"""The balancer's configuration: what is right, and what each mistake is answered with."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from balancer import cli, config
from balancer.config import Backend
from balancer.keys.request import KeySpec
from common.settings import COMMAND_LINE, ConfigError

SERVICE = """
[[service]]
vip = "192.0.2.10"
port = 80
"""
BACKEND = """
[[service.backend]]
id = 1
address = "192.0.2.20"
"""


@pytest.fixture(autouse=True)
def no_default_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, balancer_host: None
) -> Path:
    """This host's own configuration counts in no test, nor do its addresses."""
    default = tmp_path / "default.toml"
    monkeypatch.setattr(config, "DEFAULT_FILE", default)
    return default


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "balancer.toml"
    path.write_text(text)
    return str(path)


def test_nothing_given_is_the_network_of_the_lab() -> None:
    loaded = config.load()

    (service,) = loaded.services
    assert (str(service.vip), service.port, service.dscp) == ("192.168.33.10", 80, 3)
    assert service.backends == (
        Backend(1, IPv4Address("192.168.33.20")), Backend(2, IPv4Address("192.168.33.21")),
    )
    assert service.key == KeySpec("http.path")
    assert service.scheduler == "maglev"
    assert (loaded.interface, loaded.secret_file) == ("eth1", "/etc/l3dsr/secret")
    assert (loaded.engine, loaded.max_flows) == ("auto", 1_000_000)


def test_flags_describe_one_service() -> None:
    loaded = config.load(flags={
        "vip": "192.0.2.1", "port": 8080, "dscp": 7, "key": "http.host", "fallback": "payload:4",
        "scheduler": "rendezvous", "hash_balance_factor": 150,
        "backend": ["192.0.2.2,weight=3", "192.0.2.3,id=9"],
    })

    (service,) = loaded.services
    assert service.name == "192.0.2.1:8080"
    assert service.dscp == 7
    assert service.hash_balance_factor == 150
    assert str(service.fallback) == "payload:4"
    assert service.backends == (
        Backend(1, IPv4Address("192.0.2.2"), 3), Backend(9, IPv4Address("192.0.2.3")),
    )


def test_a_file_says_everything(tmp_path: Path) -> None:
    path = write(tmp_path, """
interface = "eth0"
secret_file = "/run/secret"
engine = "portable"
max_flows = 5
hold_octets_total = 1000
id_bits = 4
takeover_rate = 7
new_flow_rate = 8
queue = 3
mark = 9
metrics = "127.0.0.1:9101"
log_level = "debug"
log_format = "json"

[timeouts]
idle = 60
half_closed = 1.5
reset = 2

[[service]]
name = "shop"
vip = "192.0.2.10"
port = 443
dscp = 11
key = "tls.sni"
fallback = "source+port"
scheduler = "rendezvous"
hash_balance_factor = 125
mss = 1400
wscale = 9
sack = false
timestamps = false

[service.hold]
segments = 4
octets = 4096
time = 0.5
policy = "reset"

[[service.backend]]
id = 15
address = "192.0.2.20"
weight = 0

[[service]]
vip = "192.0.2.10"
port = 80

[[service.backend]]
id = 1
address = "192.0.2.20"
""")

    loaded = config.load(path)

    shop, plain = loaded.services
    assert loaded.file == path
    assert (loaded.id_bits, loaded.takeover_rate, loaded.queue, loaded.mark) == (4, 7, 3, 9)
    assert loaded.new_flow_rate == 8
    assert loaded.metrics == ("127.0.0.1", 9101)
    assert loaded.timeouts == config.Timeouts(60_000, 1500, 2000)
    assert shop.hold == config.Hold(4, 4096, 500, "reset")
    assert (shop.name, shop.mss, shop.wscale, shop.sack, shop.timestamps) == (
        "shop", 1400, 9, False, False)
    assert shop.backends == (Backend(15, IPv4Address("192.0.2.20"), 0),)
    assert plain.name == "192.0.2.10:80"


def test_a_flag_counts_before_the_file_for_what_is_not_a_service(tmp_path: Path) -> None:
    path = write(tmp_path, 'interface = "eth0"\nmax_flows = 5\n' + SERVICE + BACKEND)

    loaded = config.load(path, {"interface": "eth7"})

    assert (loaded.interface, loaded.max_flows) == ("eth7", 5)


def test_the_default_file_counts_where_it_exists(no_default_file: Path) -> None:
    no_default_file.write_text(SERVICE + BACKEND)

    loaded = config.load()

    assert str(loaded.services[0].vip) == "192.0.2.10"
    assert loaded.file == str(no_default_file)


def test_flags_may_describe_the_service_that_a_file_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path, "max_flows = 5\n")

    loaded = config.load(path, {"vip": "192.0.2.1"})

    assert (str(loaded.services[0].vip), loaded.max_flows) == ("192.0.2.1", 5)


def test_every_key_survives_being_written_and_read(tmp_path: Path) -> None:
    for key in ("http.path,depth=2,len=32", "http.cookie:sid", "payload:16", "source+port"):
        path = write(tmp_path, SERVICE + f'key = "{key}"\n' + BACKEND)

        loaded = config.load(path)

        assert str(loaded.services[0].key) == key


SECOND = """
[[service]]
vip = "192.0.2.11"
port = 80
dscp = 7
[[service.backend]]
id = 1
address = "192.0.2.20"
"""

# mistake → (text, key, value as it is shown, part of the remedy)
MISTAKES = {
    "unknown key": ('intrface = "eth0"\n' + SERVICE + BACKEND,
                    "intrface", "'eth0'", "did you mean `interface`?"),
    "unknown key that is like no other": ("zzz = 1\n" + SERVICE + BACKEND,
                                          "zzz", "1", "a key that there is: accept_version_1"),
    "unknown table of services": ("[[services]]\nport = 80\n",
                                  "services", "[{'port': 80}]", "did you mean `service`?"),
    "unknown key of a service": (SERVICE + "prot = 80\n" + BACKEND,
                                 "service[0].prot", "80", "did you mean `port`?"),
    "unknown key of a backend": (SERVICE + BACKEND + "wieght = 2\n",
                                 "service[0].backend[0].wieght", "2", "did you mean `weight`?"),
    "unknown timeout": ("[timeouts]\nidel = 3\n" + SERVICE + BACKEND,
                        "timeouts.idel", "3", "did you mean `idle`?"),
    "text for a number": (SERVICE.replace("80", '"80"') + BACKEND,
                          "service[0].port", "'80'", "a whole number from 1 to 65535"),
    "number for a text": ("interface = 5\n" + SERVICE + BACKEND,
                          "interface", "5", "a text in quotes"),
    "true for a number": ("max_flows = true\n" + SERVICE + BACKEND,
                          "max_flows", "True", "a whole number"),
    "number for a boolean": (SERVICE + "sack = 1\n" + BACKEND,
                             "service[0].sack", "1", "true or false"),
    "text for a time": ('[timeouts]\nidle = "1m"\n' + SERVICE + BACKEND,
                        "timeouts.idle", "'1m'", "seconds, from 1"),
    "time that is too short": ("[timeouts]\nreset = 0\n" + SERVICE + BACKEND,
                               "timeouts.reset", "0", "seconds, from 1"),
    "value for a table": ("timeouts = 3\n" + SERVICE + BACKEND,
                          "timeouts", "3", "a table, written [timeouts]"),
    "table for an array": ("[service]\nport = 80\n", "service", "{'port': 80}", "[[service]]"),
    "dscp 0": (SERVICE + "dscp = 0\n" + BACKEND, "service[0].dscp", "0", "from 1 to 63"),
    "dscp 64": (SERVICE + "dscp = 64\n" + BACKEND, "service[0].dscp", "64", "from 1 to 63"),
    "the same dscp twice": (SERVICE + BACKEND + SECOND.replace("dscp = 7", "dscp = 3"),
                            "service[1].dscp", "3", "a DSCP that no other service has"),
    "the same VIP and port twice": (SERVICE + BACKEND + SECOND.replace(".11", ".10"),
                                    "service[1].vip", "'192.0.2.10:80'",
                                    "a VIP and port that no other service has"),
    "the same name twice": (
        SERVICE + 'name = "a"\n' + BACKEND + SECOND.replace("dscp = 7", 'dscp = 7\nname = "a"'),
        "service[1].name", "'a'", "a name that no other service has"),
    "the same id twice": (SERVICE + BACKEND + BACKEND.replace(".20", ".21"),
                          "service[0].backend[1].id", "1", "an id that no other backend has"),
    "the same address twice": (SERVICE + BACKEND + BACKEND.replace("id = 1", "id = 2"),
                               "service[0].backend[1].address", "'192.0.2.20'",
                               "an address that no other backend has"),
    "id 0": (SERVICE + BACKEND.replace("id = 1", "id = 0"),
             "service[0].backend[0].id", "0", "from 1 to 127"),
    "id 128": (SERVICE + BACKEND.replace("id = 1", "id = 128"),
               "service[0].backend[0].id", "128", "from 1 to 127"),
    "id above fewer bits": ("id_bits = 4\n" + SERVICE + BACKEND.replace("id = 1", "id = 16"),
                            "service[0].backend[0].id", "16", "from 1 to 15"),
    "no id": (SERVICE + BACKEND.replace("id = 1", ""),
              "service[0].backend[0].id", "None", "this key is required"),
    "more id bits than timestamps allow": ("id_bits = 8\n" + SERVICE + BACKEND,
                                           "id_bits", "8", "from 1 to 7"),
    "key that is none": (SERVICE + 'key = "http.pth"\n' + BACKEND,
                         "service[0].key", "'http.pth'", "one of http.path"),
    "key with a wrong modifier": (SERVICE + 'key = "http.path,depth=x"\n' + BACKEND,
                                  "service[0].key", "'http.path,depth=x'", "depth=N and len=N"),
    "fallback that is none": (SERVICE + 'fallback = "no"\n' + BACKEND,
                              "service[0].fallback", "'no'", "one of http.path"),
    "scheduler that is none": (SERVICE + 'scheduler = "magic"\n' + BACKEND,
                               "service[0].scheduler", "'magic'", "one of maglev, rendezvous"),
    "load bound without hashing": (
        SERVICE + 'scheduler = "random"\nhash_balance_factor = 150\n' + BACKEND,
        "service[0].hash_balance_factor", "150", "none with scheduler random"),
    "load bound below the fair share": (SERVICE + "hash_balance_factor = 99\n" + BACKEND,
                                        "service[0].hash_balance_factor", "99", "from 100"),
    "hold policy that is none": (SERVICE + '[service.hold]\npolicy = "drop"\n' + BACKEND,
                                 "service[0].hold.policy", "'drop'", "one of hash, reset"),
    "IPv6 VIP": (SERVICE.replace("192.0.2.10", "2001:db8::1") + BACKEND,
                 "service[0].vip", "'2001:db8::1'", "IPv6 is not carried yet"),
    "IPv6 backend": (SERVICE + BACKEND.replace("192.0.2.20", "2001:db8::2"),
                     "service[0].backend[0].address", "'2001:db8::2'", "IPv6 is not carried yet"),
    "VIP that no host can have": (SERVICE.replace("192.0.2.10", "224.0.0.1") + BACKEND,
                                  "service[0].vip", "'224.0.0.1'", "the IPv4 address of a host"),
    "VIP that is no address": (SERVICE.replace("192.0.2.10", "www") + BACKEND,
                               "service[0].vip", "'www'", "the IPv4 address of a host"),
    "backend with the VIP": (
        SERVICE + BACKEND.replace("192.0.2.20", "192.0.2.10"),
        "service[0].backend[0].address", "'192.0.2.10'", "another one than the VIP"),
    "backend with another service's VIP": (
        SERVICE + BACKEND.replace("192.0.2.20", "192.0.2.11") + SECOND,
        "service[0].backend[0].address", "'192.0.2.11'", "another one than the VIP"),
    "no VIP": ("[[service]]\nport = 80\n" + BACKEND,
               "service[0].vip", "None", "this key is required"),
    "no backend": (SERVICE, "service[0].backend", "None", "at least one backend"),
    "no service": ("max_flows = 3\n", "service", "None", "at least one [[service]]"),
    "engine that is none": ('engine = "quick"\n' + SERVICE + BACKEND,
                            "engine", "'quick'", "one of auto, portable, fast"),
    "log level that is none": ('log_level = "loud"\n' + SERVICE + BACKEND,
                               "log_level", "'loud'", "one of debug, info"),
    "metrics without a port": ('metrics = "127.0.0.1"\n' + SERVICE + BACKEND,
                               "metrics", "'127.0.0.1'", "ADDRESS:PORT"),
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
    assert message.startswith(f"balancer: {path}: {key} = {value}: expected ")
    assert remedy in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("text, remedy", [
    ("vip = = 3", "valid TOML"), ("\xff", "valid TOML"), (None, "a readable file"),
])
def test_a_file_that_cannot_be_read_is_named(
    text: str | None, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "balancer.toml"
    if text is not None:
        path.write_text(text, encoding="latin-1")

    code = cli.main(["--config", str(path)])

    message = capsys.readouterr().err
    assert code == 2
    assert str(path) in message
    assert remedy in message


FLAG_MISTAKES = [
    (["--port", "x"], "--port = 'x'", "a whole number from 1 to 65535"),
    (["--port", "70000"], "--port = 70000", "a whole number from 1 to 65535"),
    (["--dscp", "-1"], "--dscp = -1", "from 1 to 63"),
    (["--vip", "::1"], "--vip = '::1'", "IPv6 is not carried yet"),
    (["--backend", "192.0.2.1,id=0"], "--backend id = 0", "from 1 to 127"),
    (["--backend", "192.0.2.1,wait=3"], "--backend = '192.0.2.1,wait=3'", "[,weight=W]"),
    (["--backend", "192.0.2.1,id=2", "--backend", "192.0.2.2"], "--backend id = 2",
     "an id that no other backend has"),
    (["--backend", "here"], "--backend address = 'here'", "the IPv4 address of a host"),
    (["--backend", "192.168.33.10"], "--backend address = '192.168.33.10'",
     "another one than the VIP"),
    (["--key", "path"], "--key = 'path'", "one of http.path"),
    (["--scheduler", "first"], "--scheduler = 'first'", "one of maglev"),
    (["--engine", "quick"], "--engine = 'quick'", "one of auto, portable, fast"),
    (["--max-flows", "0"], "--max-flows = 0", "a whole number from 1"),
    (["--log-format", "xml"], "--log-format = 'xml'", "one of text, json"),
]


@pytest.mark.parametrize("flags, what, remedy", FLAG_MISTAKES,
                         ids=[" ".join(flags) for flags, _, _ in FLAG_MISTAKES])
def test_a_mistake_in_a_flag_names_the_flag(
    flags: list[str], what: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(flags)

    message = capsys.readouterr().err
    assert code == 2
    assert message.startswith(f"balancer: {COMMAND_LINE}: {what}: expected ")
    assert remedy in message


def test_flags_that_describe_a_service_are_refused_beside_a_file_with_services(
    tmp_path: Path, no_default_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, SERVICE + BACKEND)
    no_default_file.write_text(SERVICE + BACKEND)

    codes = [cli.main(["--config", path, "--port", "81"]), cli.main(["--port", "81"])]

    first, second = capsys.readouterr().err.splitlines()
    assert codes == [2, 2]
    assert f"--port = 81: expected no flag that describes a service, since {path} has" in first
    assert str(no_default_file) in second


def test_unknown_flags_given_by_a_program_are_refused() -> None:
    with pytest.raises(ConfigError, match="--quue"):
        config.load(flags={"quue": 3})
