"""The command line of the balancer."""

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

from balancer import config, explain
from common import cli, cookie, settings
from common.settings import COMMAND_LINE, ConfigError

_DESCRIPTION = """\
Balance TCP connections by their content. Answers SYNs for a virtual IP, chooses a
backend from the client's first octets (an HTTP path, a TLS server name …) and sends
the connection's packets to the packetbridge there. Replies do not come back through
here: they go from the backend straight to the client.

Without arguments it serves the network of the Vagrantfile."""

_EPILOG = """\
examples:
  sudo balancer keygen                      make the cluster's secret; copy it to all hosts
  sudo balancer --interface eth0 --vip 192.0.2.10 --backend 192.0.2.20,id=1 --backend 192.0.2.21,id=2
  balancer check /etc/l3dsr/balancer.toml   is this file right, and what does it say?
  balancer explain http://example.org/a     which backend, and why?
  balancer replay in.pcap out.pcap          what would it do with this traffic?"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = cli.parser("balancer", _DESCRIPTION, _EPILOG)
    cli.add_global_flags(made, str(config.DEFAULT_FILE))
    one = made.add_argument_group("one service (any number of them in the file)")
    one.add_argument("--vip", metavar="ADDR", help="the virtual IP (default 192.168.33.10)")
    one.add_argument("--port", metavar="N", help="its port (default 80)")
    one.add_argument("--dscp", metavar="N", help="codepoint 1 to 63 that names it (default 3)")
    one.add_argument("--backend", metavar="ADDR[,id=N][,weight=W]", action="append",
                     help="a bridge's address; repeatable (default 192.168.33.20,id=1 and .21,id=2)")
    one.add_argument("--key", metavar="KEY",
                     help="what is hashed: http.path (default), http.target, http.host+path, "
                          "http.host, http.header:NAME, http.cookie:NAME, http.query:NAME, "
                          "tls.sni, payload:N, source, source+port; paths with ,depth=N ,len=N")
    one.add_argument("--scheduler", metavar="NAME",
                     help="maglev (default), rendezvous, round-robin, random, least-flows")
    one.add_argument("--hash-balance-factor", metavar="PERCENT",
                     help="bound a backend's flows to this share of the fair one (100 or more)")
    made.set_defaults(run=_serve)
    commands = made.add_subparsers(metavar="command", title="commands (none: serve)")
    _add_keygen(commands)
    _add_check(commands)
    _add_explain(commands)
    cli.add_replay(commands, config.load, _make_datapath)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns: its exit code."""
    return cli.run("balancer", build_parser().parse_args(argv))


def _serve(arguments: argparse.Namespace) -> int:
    from balancer import daemon

    flags = argparse.Namespace(
        **{key: value for key, value in vars(arguments).items() if key != "run"}
    )
    return daemon.run(config.load(flags))


def _make_datapath(loaded: config.Config, secrets: cookie.Secrets):
    from balancer.datapath import Datapath

    return Datapath(loaded, secrets, random=Random(0))


# --- keygen ---


def _add_keygen(commands) -> None:
    made = commands.add_parser(
        "keygen", help="make or rotate the cluster's secret",
        description="Write a new key to FILE (mode 0600). Where FILE holds a key, that one is kept "
                    "as the previous key, which hosts still accept: copy the file to all hosts, "
                    "restart them one by one, and no flow is lost.",
    )
    made.add_argument("file", metavar="FILE", nargs="?", default=config.DEFAULT_SECRET)
    made.set_defaults(run=_keygen)


def _keygen(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    previous = None
    if path.exists():
        previous = settings.check_secret(COMMAND_LINE, str(path)).current
    secrets = cookie.Secrets(cookie.new_key(), previous)
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.emit())
        draft.replace(path)
    except OSError as error:
        raise ConfigError(
            COMMAND_LINE, "FILE", str(path), f"a place to write to ({error.strerror})"
        ) from None
    print(f"{path}: {'a new key; the old one is still accepted' if previous else 'a new key'}. "
          "Copy it to every balancer and bridge of the cluster.")
    return 0


# --- check ---


def _add_check(commands) -> None:
    made = commands.add_parser("check", help="validate a configuration and print its services")
    made.add_argument("file", metavar="FILE", nargs="?")
    made.add_argument("--json", action="store_true", help="for programs")
    made.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    loaded = config.load(argparse.Namespace(config=arguments.file))
    if arguments.json:
        print(json.dumps(asdict(replace(loaded, services=())) | {
            "services": [_described(service) for service in loaded.services]
        }, default=str))
        return 0
    rows = [("service", "vip", "dscp", "key", "scheduler", "backends")]
    for service in loaded.services:
        backends = ", ".join(
            f"{backend.id}={backend.address}" + (f"*{backend.weight}" if backend.weight != 1 else "")
            for backend in service.backends
        )
        rows.append((service.name, f"{service.vip}:{service.port}", str(service.dscp),
                     str(service.key), service.scheduler, backends))
    print(cli.table(rows))
    try:
        settings.check_interface(loaded.file, loaded.interface)
        settings.check_secret(loaded.file, loaded.secret_file)
    except ConfigError as warning:
        print(f"on this host it would not start: {warning}", file=sys.stderr)
    return 0


def _described(service: config.Service) -> dict[str, object]:
    return {
        "name": service.name, "vip": str(service.vip), "port": service.port, "dscp": service.dscp,
        "key": str(service.key), "scheduler": service.scheduler,
        "backends": [
            {"id": backend.id, "address": str(backend.address), "weight": backend.weight}
            for backend in service.backends
        ],
    }


# --- explain ---


def _add_explain(commands) -> None:
    made = commands.add_parser(
        "explain", help="which backend would a request get, and why?",
        description="Show the key of a request, its hash and table slot, the backend, and the one "
                    "that would have it if that backend left.",
    )
    made.add_argument("url", metavar="URL", nargs="?")
    made.add_argument("--payload", metavar="FILE", help="the client's first octets, instead of a URL")
    made.add_argument("--service", metavar="NAME", help="(default: the first)")
    made.add_argument("--source", metavar="ADDR[:PORT]", default="0.0.0.0:0",
                      help="the client, where the key is its address")
    made.add_argument("--config", metavar="FILE")
    made.add_argument("--json", action="store_true", help="for programs")
    made.set_defaults(run=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    loaded = config.load(argparse.Namespace(config=arguments.config))
    service = explain.find_service(loaded, arguments.service)
    if service is None:
        names = ", ".join(known.name for known in loaded.services)
        raise ConfigError(loaded.file, "--service", arguments.service, f"one of {names}")
    source, sport = _client(arguments.source)
    answer = asdict(explain.explain(service, _payload(arguments), source, sport))
    if arguments.json:
        print(json.dumps(answer))
        return 0
    print(cli.table([(name.replace("_", " "), "-" if value is None else str(value))
                     for name, value in answer.items()]))
    return 0


def _payload(arguments: argparse.Namespace) -> bytes:
    if bool(arguments.url) == bool(arguments.payload):
        raise ConfigError(COMMAND_LINE, "URL", arguments.url, "either a URL or --payload FILE")
    if arguments.url:
        return explain.request_for(arguments.url)
    try:
        return Path(arguments.payload).read_bytes()
    except OSError as error:
        raise ConfigError(
            COMMAND_LINE, "--payload", arguments.payload, f"a readable file ({error.strerror})"
        ) from None


def _client(text: str) -> tuple[bytes, int]:
    address, _, port = text.partition(":")
    try:
        return IPv4Address(address).packed, int(port or 0)
    except ValueError:
        raise ConfigError(COMMAND_LINE, "--source", text, "ADDRESS or ADDRESS:PORT") from None
