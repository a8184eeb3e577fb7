"""The balancer's command line, as a person or a program meets it."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer import cli, config
from balancer.pool import schedule
from balancer.tools.keygen import rotate
from common import __version__
from common.cluster.secrets import load_secrets
from common.engine import instances, lock
from common.settings.flags import flag_name
from common.settings.schema import settings_of

ROOT = Path(__file__).resolve().parents[2]
NO_INTERFACE = "no-such-iface0"

TWO_SERVICES = """
[[service]]
name = "web"
vip = "192.0.2.10"
port = 80
[[service.backend]]
id = 1
address = "192.0.2.20"
weight = 2
[[service.backend]]
id = 2
address = "192.0.2.21"

[[service]]
name = "tls"
vip = "192.0.2.10"
port = 443
dscp = 7
key = "tls.sni"
scheduler = "rendezvous"
hash_balance_factor = 150
[[service.backend]]
id = 1
address = "192.0.2.20"
[[service.backend]]
id = 2
address = "192.0.2.21"
"""


@pytest.fixture(autouse=True)
def no_default_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, balancer_host: None
) -> None:
    """This host's own configuration counts in no test, nor do its addresses."""
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "default.toml")


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that every user may look into."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    cli.main(["keygen", str(path)])
    return path


@pytest.fixture
def two_services(tmp_path: Path) -> str:
    path = tmp_path / "two.toml"
    path.write_text(TWO_SERVICES)
    return str(path)


# --- run ---


def test_a_stranger_finds_every_command_and_examples_in_the_help(
    capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["--help"])

    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    for word in ("keygen", "check", "explain", "replay", "examples:", "--backend", "http.path"):
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

    assert capsys.readouterr().out == f"balancer {__version__}\n"


@pytest.mark.parametrize("arguments, hint", [
    (["--bakend", "192.0.2.1"], "there is no --bakend; did you mean --backend?"),
    (["--bakend=192.0.2.1"], "there is no --bakend; did you mean --backend?"),
    (["check", "--intreface", "lo"], "there is no --intreface; did you mean --interface?"),
    (["--zzz"], "see balancer --help"),
    (["chek"], "invalid choice: 'chek'"),
    (["--port"], "expected one argument"),
    (["explain", "--source"], "see balancer explain --help"),
    (["explain", "/a", "/b"], "unrecognized arguments: /b"),
])
def test_a_command_line_that_is_wrong_is_one_line_and_exit_code_2(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)

    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert message.startswith("balancer")
    assert hint in message
    assert message.count("\n") == 1


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The program itself, away from this host's configuration."""
    return subprocess.run(
        [sys.executable, "-m", "balancer", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options,
    )


def test_the_program_refuses_a_wrong_file_with_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "balancer.toml"
    path.write_text("quite_another = 80\n")

    done = run("--config", str(path))

    assert done.returncode == 2
    assert done.stderr.startswith(f"balancer: {path}: quite_another = 80: expected a key that ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_rights_it_says_so(public_directory: Path) -> None:
    path = public_directory / "balancer.toml"
    path.write_text(TWO_SERVICES)
    interfaces = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not interfaces:
        pytest.skip("this host has no interface")

    done = run("--config", str(path), "--interface", interfaces[0],
               user=65534, group=65534, extra_groups=[])

    assert done.returncode == 2
    assert done.stderr == (
        "balancer: balancer: user = 65534: expected root, or the capabilities NET_ADMIN and "
        "NET_RAW: sudo balancer\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs rights to get as far as the interface")
def test_an_unknown_interface_is_named_with_those_there_are(two_services: str) -> None:
    done = run("--config", two_services, "--interface", NO_INTERFACE)

    assert done.returncode == 2
    assert f"interface = '{NO_INTERFACE}': expected an interface of this host: " in done.stderr
    assert done.stderr.count("\n") == 1


SECRETS = {
    "missing": (None, 0o600, "make one with `balancer keygen"),
    "readable by all": ("00" * 16, 0o644, "chmod 600"),
    "readable by the group": ("00" * 16, 0o640, "chmod 600"),
    "too short": ("00" * 15, 0o600, "32 hex digits"),
    "no hex digits": ("zz" * 16, 0o600, "32 hex digits"),
    "three keys": ("\n".join(["00" * 16] * 3), 0o600, "one or two lines of 32 hex digits"),
    "empty": ("", 0o600, "one or two lines of 32 hex digits"),
}


@pytest.mark.parametrize("case", SECRETS)
def test_a_secret_that_cannot_be_used_is_refused_and_never_shown(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, mode, remedy = SECRETS[case]
    path = tmp_path / "secret"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    commands = [["check"]]
    if os.geteuid() == 0:
        commands.append([])

    for command in commands:
        code = cli.main([*command, "--secret-file", str(path)])

        message = capsys.readouterr().err
        assert code == 2
        assert f"secret_file = '{path}': expected" in message
        assert remedy in message
        assert not text or text.splitlines()[0] not in message
        assert message.count("\n") == 1


# --- keygen ---


def test_keygen_makes_a_secret_that_only_its_owner_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "secret"

    code = cli.main(["keygen", str(path)])

    text = capsys.readouterr().out
    assert code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o755 == 0o755
    assert load_secrets(path).previous is None
    assert text.startswith(f"{path}: a new key. Copy it")
    assert path.read_text().strip() not in text
    assert list(path.parent.iterdir()) == [path]


def test_keygen_rotates_what_is_there(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_secrets(secret)

    cli.main(["keygen", str(secret)])
    second = load_secrets(secret)
    cli.main(["keygen", str(secret)])
    third = load_secrets(secret)

    assert second.current != first.current
    assert second.previous == first.current
    assert third.previous == second.current
    assert "the old one is still accepted" in capsys.readouterr().out


def test_keygen_leaves_a_file_that_holds_no_secret_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secret"
    path.write_text("my shopping list")
    path.chmod(0o600)

    code = cli.main(["keygen", str(path)])

    assert code == 2
    assert path.read_text() == "my shopping list"
    assert "one or two lines of 32 hex digits" in capsys.readouterr().err


def test_keygen_follows_a_symbolic_link(secret: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(secret)

    cli.main(["keygen", str(link)])

    assert link.is_symlink()
    assert load_secrets(secret).previous is not None


def test_keygen_says_where_it_cannot_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")

    code = cli.main(["keygen", str(tmp_path / "file" / "secret")])

    assert code == 2
    assert "a file that can be written" in capsys.readouterr().err


# --- check ---


def test_check_prints_the_services_as_a_table(
    two_services: str, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["check", two_services, "--secret-file", str(secret)])

    out, err = capsys.readouterr()
    assert code == 0
    assert err == ""
    assert out.splitlines() == [
        "service  vip             dscp  key        scheduler                  backends",
        "web      192.0.2.10:80      3  http.path  maglev                     "
        "1=192.0.2.20*2 2=192.0.2.21*1",
        "tls      192.0.2.10:443     7  tls.sni    rendezvous, at most 150 %  "
        "1=192.0.2.20*1 2=192.0.2.21*1",
    ]


def test_check_prints_the_services_for_programs(
    two_services: str, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["check", two_services, "--secret-file", str(secret), "--interface", NO_INTERFACE,
              "--json"])

    answer = json.loads(capsys.readouterr().out)
    web, _ = answer["services"]
    assert web["backends"][0] == {"id": 1, "address": "192.0.2.20", "weight": 2}
    assert (web["vip"], web["port"], web["key"], web["fallback"]) == (
        "192.0.2.10", 80, "http.path", "source")
    assert len(answer["warnings"]) == 1


def test_check_only_warns_of_an_interface_that_is_not_there(
    two_services: str, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(
        ["check", two_services, "--secret-file", str(secret), "--interface", NO_INTERFACE])

    assert code == 0
    warning = capsys.readouterr().err
    assert warning.startswith("balancer: warning: ")
    assert NO_INTERFACE in warning


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_check_without_root_says_that_it_cannot_see_the_secret(public_directory: Path) -> None:
    config_file, secret = public_directory / "balancer.toml", public_directory / "secret"
    config_file.write_text(TWO_SERVICES)
    cli.main(["keygen", str(secret)])

    done = run("check", str(config_file), "--secret-file", str(secret),
               user=65534, group=65534, extra_groups=[])

    assert done.returncode == 0
    assert "cannot be read by this user" in done.stderr
    assert "192.0.2.10:443" in done.stdout


# --- explain ---


def test_explain_shows_the_way_of_a_url(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["explain", "http://192.168.33.10/img/logo.png?size=2"])

    key = b"/img/logo.png"
    slot = schedule.hash_key(key) % schedule.TABLE_SIZE
    chosen = schedule.Maglev(config.load().services[0].backends).pick(key)
    other = 3 - chosen
    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        "service    192.168.33.10:80",
        "key        http.path = /img/logo.png",
        f"hash       {schedule.hash_key(key):#010x}",
        f"slot       {slot} of 65537",
        f"backend    {chosen} (192.168.33.{19 + chosen})",
        f"runner-up  {other} (192.168.33.{19 + other}), if backend {chosen} left",
    ]


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert cli.main(["explain", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("key, arguments, expected", [
    ("http.target", ["http://h.example/a?b=c"], "/a?b=c"),
    ("http.path", ["h.example"], "/"),
    ("http.path", ["/only/a/path"], "/only/a/path"),
    ("http.host", ["http://user@H.Example:8080/a"], "h.example"),
    ("http.host+path", ["http://h.example/a"], "h.example/a"),
    ("http.query:b", ["http://h.example/a?b=c"], "c"),
    ("http.header:X-Id", ["/a", "--header", "X-Id: 7"], "7"),
    ("http.cookie:sid", ["/a", "--header", "Cookie: a=1; sid=xyz"], "xyz"),
    ("http.path,depth=1", ["/a/b/c"], "/a"),
    ("tls.sni", ["https://tls.example/a"], "tls.example"),
    ("payload:4", ["/a"], "GET "),
    ("source", ["/a", "--source", "198.51.100.7"], "198.51.100.7"),
    ("source+port", ["/a", "--source", "198.51.100.7:4000"], "198.51.100.7:4000"),
])
def test_explain_knows_every_kind_of_key(
    key: str, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = explain(capsys, "--key", key, *arguments)

    assert answer["key"] == expected
    assert answer["key_spec"] == key
    assert answer["complete"]
    assert {answer["backend"], answer["runner_up"]} == {1, 2}


def test_explain_falls_back_where_a_payload_has_no_such_key(
    capsys: pytest.CaptureFixture[str]
) -> None:
    answer = explain(capsys, "https://h.example/", "--key", "http.path", "--source", "192.0.2.1")

    assert (answer["key_spec"], answer["key"]) == ("source", "192.0.2.1")


def test_explain_asks_for_the_client_where_its_address_is_the_key(
    capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["explain", "https://h.example/"])

    assert code == 2
    assert "--source = None: expected ADDR" in capsys.readouterr().err


def test_explain_reads_a_payload_and_says_when_the_key_is_not_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"GET /long/pa")

    code = cli.main(["explain", "--payload", str(payload)])

    out = capsys.readouterr().out
    assert code == 0
    assert "http.path = /long/pa\n" in out
    assert "would wait for more" in out


def test_explain_says_that_some_schedulers_do_not_ask_for_the_key(
    capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["explain", "/a", "--scheduler", "round-robin"])

    assert "round-robin chooses without the key" in capsys.readouterr().out


def test_explain_takes_the_service_of_the_url_or_the_one_named(
    two_services: str, capsys: pytest.CaptureFixture[str]
) -> None:
    by_url = explain(capsys, "--config", two_services, "http://192.0.2.10/a")
    named = explain(capsys, "--config", two_services, "https://h.example/", "--service", "tls")
    codes = [cli.main(["explain", "--config", two_services, "/a"]),
             cli.main(["explain", "--config", two_services, "http://h.example:8080/"]),
             cli.main(["explain", "--config", two_services, "/a", "--service", "ftp"])]

    assert (by_url["service"], named["service"]) == ("web", "tls")
    assert named["slot"] is not None
    assert codes == [2, 2, 2]
    assert capsys.readouterr().err.count("web, tls") == 3


@pytest.mark.parametrize("url, service", [
    ("http://h.example/a", "web"), ("https://h.example/a", "tls"),
    ("https://h.example:80/", "web"), ("h.example:443", "tls"),
])
def test_explain_takes_the_only_service_with_the_urls_port(
    url: str, service: str, two_services: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = explain(capsys, "--config", two_services, url, "--source", "192.0.2.1")

    assert answer["service"] == service


def test_explain_asks_which_of_several_services_with_the_urls_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "three.toml"
    path.write_text(TWO_SERVICES + """
[[service]]
name = "shop"
vip = "192.0.2.12"
port = 80
dscp = 11
[[service.backend]]
id = 1
address = "192.0.2.20"
""")

    by_vip = explain(capsys, "--config", str(path), "http://192.0.2.12/")
    code = cli.main(["explain", "--config", str(path), "http://h.example/"])

    assert by_vip["service"] == "shop"
    assert code == 2
    assert "--service = None: expected one of web, shop" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, what", [
    ([], "either a URL or --payload FILE"),
    (["/a", "--payload", "x"], "either a URL or --payload FILE"),
    (["--payload", "/no/such/file"], "a readable file"),
    (["ftp://h.example/"], "http://HOST/PATH"),
    (["http://h.example:99999/"], "http://HOST/PATH"),
    (["http://h.example/a b"], "http://HOST/PATH"),
    (["http:///a"], "http://HOST/PATH"),
    (["https://" + "x" * 70 + "/"], "a host name"),
    (["/a", "--source", "::1"], "ADDR or ADDR:PORT"),
    (["/a", "--source", "192.0.2.1:x"], "ADDR or ADDR:PORT"),
])
def test_explain_refuses_what_it_cannot_use(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["explain", *arguments])

    assert code == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, lifetime_ms", [("5m", 300_000), ("90", 90_000), ("1h30m", 5_400_000)])
def test_a_lifetime_is_a_time_in_words(given: str, lifetime_ms: int) -> None:
    namespace = cli.make_parser().parse_args(["--for", given])

    loaded = config.load(None, {"lifetime": namespace.lifetime})

    assert loaded.lifetime_ms == lifetime_ms


def test_a_lifetime_that_is_none_names_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--for", "soon"]) == 2

    assert "command line: --for = 'soon': expected seconds, or a time such as" \
        in capsys.readouterr().err


def test_reload_and_diff_say_that_nothing_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "DIRECTORY", tmp_path)

    assert cli.main(["reload"]) == 2
    assert "expected a balancer that runs here: none does" in capsys.readouterr().err


def test_diff_says_what_would_change_at_what_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "DIRECTORY", tmp_path / "running")
    monkeypatch.setattr(lock, "DIRECTORY", tmp_path / "locks")
    secret = tmp_path / "secret"
    rotate(secret)
    text = (f'interface = "eth7"\nsecret_file = "{secret}"\n[[service]]\nvip = "192.0.2.10"\n'
            'port = 80\nbackend = [{id = 1, address = "192.0.2.21"}]\n')
    instances.Notes("balancer-33").write_config(text)
    path = tmp_path / "new.toml"
    path.write_text(text.replace("port = 80", 'port = 80\nscheduler = "random"'))
    locks = lock.Locks()
    locks.take("balancer-33")

    assert cli.main(["check", "--diff", str(path)]) == 0
    assert capsys.readouterr().out == (
        'service 192.0.2.10:80: scheduler: "maglev" → "random"\n')
    assert cli.main(["check", "--diff", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == [{
        "where": "service 192.0.2.10:80", "key": "scheduler", "what": '"maglev" → "random"',
        "restart": False}]
    locks.release()
