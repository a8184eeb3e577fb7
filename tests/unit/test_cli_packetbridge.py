"""The packetbridge's command line, as a person or a program meets it."""

import json
import os
from pathlib import Path

import pytest

from balancer.tools.keygen import rotate
from common import __version__
from common.settings.flags import flag_name
from common.settings.schema import settings_of
from packetbridge import cli, config

TWO_SERVICES = """
[[service]]
dscp = 3
vip = "192.0.2.10:80"
server = "192.0.2.30:8080"

[[service]]
name = "tls"
dscp = 7
vip = "192.0.2.10:443"
server = "192.0.2.30:8443"
wscale = 9
"""


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend_host: None) -> None:
    """This host's own configuration counts in no test, nor do its addresses."""
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "default.toml")


@pytest.fixture
def two_services(tmp_path: Path) -> str:
    path = tmp_path / "two.toml"
    path.write_text(TWO_SERVICES)
    return str(path)


@pytest.fixture
def secret(tmp_path: Path) -> str:
    rotate(tmp_path / "secret")
    return str(tmp_path / "secret")


def test_a_stranger_finds_every_command_and_examples_in_the_help(
    capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])

    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    for word in ("check", "replay", "examples:", "--server", "DSCP=ADDR:PORT"):
        assert word in text


def test_every_key_at_the_top_of_a_file_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])

    text = capsys.readouterr().out
    for entry in settings_of(config.Config):
        assert f"{entry.setting.flag or flag_name(entry.key)} " in text


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])

    assert capsys.readouterr().out == f"packetbridge {__version__}\n"


def test_check_prints_the_services_as_a_table(
    two_services: str, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["check", two_services, "--secret-file", secret])

    out, err = capsys.readouterr()
    assert code == 0
    assert err == ""
    assert out.splitlines() == [
        "service        vip             dscp  server           wscale",
        "192.0.2.10:80  192.0.2.10:80      3  192.0.2.30:8080       7",
        "tls            192.0.2.10:443     7  192.0.2.30:8443       9",
    ]


def test_check_prints_the_services_for_programs(
    two_services: str, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["check", two_services, "--secret-file", secret, "--json"])

    answer = json.loads(capsys.readouterr().out)
    assert answer["warnings"] == []
    assert answer["services"][1] == {
        "name": "tls", "dscp": 7, "vip": "192.0.2.10", "port": 443, "server": "192.0.2.30",
        "server_port": 8443, "wscale": 9,
    }


def test_check_only_warns_of_an_interface_that_is_not_there(
    two_services: str, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(
        ["check", two_services, "--secret-file", secret, "--interface", "no-such-iface0"])

    assert code == 0
    assert "packetbridge: warning: " in capsys.readouterr().err


def test_a_missing_secret_is_refused_with_its_remedy(
    two_services: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none")
    commands = [["check", two_services]]
    if os.geteuid() == 0:
        commands.append(["--config", two_services])

    for command in commands:
        code = cli.main([*command, "--secret-file", missing])

        message = capsys.readouterr().err
        assert code == 2
        assert f"secret_file = '{missing}': expected the cluster's secret" in message
        assert "balancer keygen" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="needs rights to get as far as the interface")
def test_an_unknown_interface_is_named_with_those_there_are(
    two_services: str, secret: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["--config", two_services, "--secret-file", secret,
                     "--interface", "no-such-iface0"])

    assert code == 2
    assert "interface = 'no-such-iface0': expected an interface of this host" in (
        capsys.readouterr().err)
