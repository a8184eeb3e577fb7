"""The command line of the balancer."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from typing import Any

from balancer import config
from balancer.backends_file import BackendsFiles
from balancer.plan import plan_of
from balancer.tools import explain, keygen, operate
from common.cluster.secrets import KEEP_S
from common.engine import commands
from common.settings import COMMAND_LINE, ConfigError, cli, host
from common.settings.flags import flag_name, number
from common.settings.readers import ipv4, port_number
from common.settings.shared import DEFAULT_SECRET

PROGRAM = "balancer"
CLIENT = "203.0.113.1"  # RFC 5737: nobody's
_DESCRIPTION = """\
Balance TCP connections by their content. Answers SYNs for a virtual IP (VIP), chooses
a backend from the client's first octets (an HTTP path, a TLS server name ...) and sends
the connection's packets to the packetbridge there. Replies do not come back through
here: they go from the backend straight to the client.

Without arguments it serves what /etc/l3dsr/balancer.toml says or, where there is no such
file, the network of the Vagrantfile. It needs root."""

_EXAMPLES = """\
examples:
  sudo balancer keygen                      make the cluster's secret; copy it to all hosts
  sudo balancer --interface eth0 --vip 192.0.2.10 --backend 192.0.2.20 --backend 192.0.2.21
  sudo balancer --config balancer.toml      any number of services, as the file says
  balancer check balancer.toml              is this file right, and what does it say?
  sudo balancer reload                      take what the file says now, while packets flow
  sudo balancer doctor                      why does it hang, and what can be done?
  balancer explain http://example.org/a     which backend would that be, and why?
  balancer replay in.pcap out.pcap          what would it do with this traffic?
  sudo balancer backends                    what does the one that runs do?
  sudo balancer drain 192.0.2.20 --wait     no new flows for a backend; until it has none
  sudo balancer trace --client 192.0.2.7    what is it doing now with this client's?"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program. Returns: its exit code; 2 is a configuration that cannot be used."""
    return cli.run(PROGRAM, make_parser(), arguments)


def make_parser() -> cli.Parser:
    """The whole command line."""
    parser = cli.make_parser(PROGRAM, _DESCRIPTION, _EXAMPLES)
    _add_config_flags(parser)
    parser.set_defaults(act=_serve)
    parsers = cli.add_commands(parser)
    _add_keygen(parsers)
    _add_detach(parsers)
    _add_check(parsers)
    commands.add_reload(parsers, PROGRAM)
    _add_doctor(parsers)
    _add_explain(parsers)
    _add_replay(parsers)
    operate.add(parsers, PROGRAM)
    _add_trace(parsers)
    return parser


def _add_config_flags(parser: cli.Parser) -> None:
    cli.add_config_flags(parser, config.Config, config.Service,
                         "one service (a file has any number of them)", config.DEFAULT_FILE)


def _load(namespace: argparse.Namespace, view: host.HostView | None = None) -> config.Config:
    """view: of the host that the settings are for, where they are to be used or checked."""
    return config.load(getattr(namespace, "config", None),
                       cli.given(namespace, config.Config, config.Service), view)


def _load_whole(
    namespace: argparse.Namespace, view: host.HostView | None = None
) -> config.Config:
    """As `_load`, with the backends of its services' files; what is wrong there is warned of."""
    loaded = _load(namespace, view)
    whole, faults = BackendsFiles(loaded.state_directory, keeps=False).resolve(loaded)
    cli.print_warnings(PROGRAM, faults)
    return whole


def _load_offline(namespace: argparse.Namespace) -> config.Config:
    """For what is tried without the host."""
    loaded = _load_whole(namespace)
    cli.warn_of_lab(PROGRAM, loaded, config.Service, namespace, config.DEFAULT_FILE)
    return loaded


def _serve(namespace: argparse.Namespace) -> int:
    loaded = _load(namespace, host.look())
    host.check_rights(PROGRAM)
    from balancer import daemon

    return daemon.run(loaded, lambda: _load(namespace, host.look()))


# --- detach ---


def _add_detach(commands: Any) -> None:
    parser = commands.add_parser(
        "detach", usage=f"{PROGRAM} detach [FLAG ...]",
        help="take the fast engine off when the program has ended, undo all changes",
        description="The fast engine keeps working when the program was killed, or ended by "
                    "SIGUSR2 for a restart. This takes it off and undoes all changes to the host. "
                    "The program itself must have ended.",
    )
    _add_config_flags(parser)
    parser.set_defaults(act=_detach)


def _detach(namespace: argparse.Namespace) -> int:
    loaded = _load(namespace)
    host.check_rights(PROGRAM)
    from balancer import daemon

    return daemon.detach(loaded)


# --- keygen ---


def _add_keygen(commands: Any) -> None:
    parser = commands.add_parser(
        "keygen", usage=f"{PROGRAM} keygen [--keep SECONDS] [--seed] [FILE]",
        help="make or rotate the cluster's secret",
        description="Make the secret that all balancers and bridges of a cluster share, readable "
                    "by its owner alone. Where FILE exists its key is rotated: a new one becomes "
                    "current, and the old one stays accepted as the previous one for a while. "
                    "The seed by which balancers choose backends stays as it is: another one moves "
                    "most URLs.",
    )
    parser.add_argument("--keep", metavar="SECONDS", type=int, default=KEEP_S,
                        help=f"how long the old key is accepted: long enough to copy the file to "
                             f"all hosts (default {KEEP_S})")
    parser.add_argument("--seed", action="store_true",
                        help="add a seed where FILE exists and has none; a new file has one")
    parser.add_argument("file", metavar="FILE", nargs="?", default=DEFAULT_SECRET,
                        help=f"(default {DEFAULT_SECRET})")
    parser.set_defaults(act=_keygen)


def _keygen(namespace: argparse.Namespace) -> int:
    keep_s = max(getattr(namespace, "keep", KEEP_S), keygen.LEAST_KEEP_S)
    made = keygen.rotate(Path(namespace.file), keep_s=keep_s,
                         adds_seed=getattr(namespace, "seed", False))
    what = "a new key"
    if made.until_s is not None:
        until = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(made.until_s))
        what = f"a new key; the old one is still accepted, until {until}"
    print(f"{namespace.file}: {what}. Copy it to every bridge, then to every balancer.")
    return 0


# --- check ---


def _add_check(parsers: Any) -> None:
    parser = parsers.add_parser(
        "check", usage=f"{PROGRAM} check [--diff] [FLAG ...] [FILE]",
        help="is this configuration right, and what does it say?",
        description="Validate a configuration and print its services, or all of its faults. "
                    "Needs no root and changes nothing; an interface that is not there is only "
                    "warned of, since the file may be for another host.",
    )
    parser.add_argument("config", metavar="FILE", nargs="?",
                        help=f"(default {config.DEFAULT_FILE}, where it exists)")
    _add_config_flags(parser)
    commands.add_diff(parser, PROGRAM)
    cli.add_json(parser)
    parser.set_defaults(act=_check)


def _check(namespace: argparse.Namespace) -> int:
    view = host.look(is_certain=False)
    loaded = _load_whole(namespace, view)
    warnings = cli.warnings_of(loaded, view)
    if namespace.diff:
        cli.print_warnings(PROGRAM, warnings)
        return commands.print_diff(PROGRAM, loaded, config.read, plan_of, namespace.json)
    if namespace.json:
        services = [_described(service) for service in loaded.services]
        cli.print_json({"file": loaded.file, "interface": loaded.interface,
                        "services": services, "warnings": warnings})
        return 0
    cli.print_table(
        ("service", "vip", "dscp", "key", "scheduler", "backends"),
        [(service.name, f"{service.vip}:{service.port}", service.dscp, service.key,
          _scheduler_of(service), _backends_of(service)) for service in loaded.services],
    )
    cli.print_warnings(PROGRAM, warnings)
    return 0


def _scheduler_of(service: config.Service) -> str:
    bound = service.hash_balance_factor
    return f"{service.scheduler}, at most {bound} %" if bound else service.scheduler


def _backends_of(service: config.Service) -> str:
    return " ".join(
        f"{backend.id}={backend.address}*{backend.weight}" for backend in service.backends
    )


def _described(service: config.Service) -> dict[str, Any]:
    """A service for programs."""
    return {
        "name": service.name, "vip": str(service.vip), "port": service.port,
        "dscp": service.dscp, "key": str(service.key), "fallback": str(service.fallback),
        "scheduler": service.scheduler, "hash_balance_factor": service.hash_balance_factor,
        "backends": [
            {"id": backend.id, "address": str(backend.address), "weight": backend.weight}
            for backend in service.backends
        ],
    }


# --- doctor ---


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", usage=f"{PROGRAM} doctor [FLAG ...]",
        help="what is wrong between here and the servers, and what to do about it?",
        description="Ask every bridge what arrives there, hand connections over as a client's are, "
                    "and say what is wrong, with a remedy for each. Runs beside the balancer or "
                    "without it, as root, with the same configuration. Exit code 0 only if all is "
                    "well.",
    )
    parser.add_argument("--client", metavar="ADDR", default=CLIENT,
                        help="the address of a client, to see whether packets that come from it "
                             f"reach the bridges (default {CLIENT}, which is nobody's)")
    _add_config_flags(parser)
    cli.add_json(parser)
    parser.set_defaults(act=_doctor)


def _doctor(namespace: argparse.Namespace) -> int:
    loaded = _load(namespace, host.look())
    host.check_rights(f"{PROGRAM} doctor")
    secrets = host.check_secret(loaded.file, loaded.secret_file).keys_at(time.time())
    try:
        client = ipv4("a port is chosen for it")(namespace.client)
    except ValueError as error:
        raise ConfigError(COMMAND_LINE, "--client", namespace.client, str(error)) from None
    from balancer.doctor.diagnose import diagnose
    from balancer.doctor.examine import examine
    from common.doctor import report

    try:
        findings = examine(loaded, secrets, client.packed)
    except OSError as error:
        print(f"{PROGRAM} doctor: {error}", file=sys.stderr)
        return 1
    title = f"services: {len(loaded.services)}, bridges: {len(findings.bridges)}"
    return report.show(title, diagnose(findings), namespace.json)


# --- explain ---


def _add_explain(commands: Any) -> None:
    parser = commands.add_parser(
        "explain", usage=f"{PROGRAM} explain [FLAG ...] URL | --payload FILE",
        help="which backend would a request get, and why?",
        description="Show a request's key, its hash and table slot, the backend, and the runner-up "
                    "that would get it if that backend left. Nothing is sent. For https the "
                    "first payload is a ClientHello.",
    )
    parser.add_argument("url", metavar="URL", nargs="?", default=None,
                        help="http://HOST/PATH, https://HOST/PATH, or /PATH alone")
    parser.add_argument("--payload", metavar="FILE", default=None,
                        help="a client's first octets (- for stdin), instead of a URL")
    parser.add_argument("--header", metavar="'NAME: VALUE'", action="append", default=[],
                        help="a further header of the request, repeatable")
    parser.add_argument("--service", metavar="NAME", default=None,
                        help="where there are several (default: the one with the URL's VIP and "
                             "port, or the only one with its port)")
    parser.add_argument("--source", metavar="ADDR[:PORT]", default=None,
                        help="the client, for keys that are made of its address")
    _add_config_flags(parser)
    cli.add_json(parser)
    parser.set_defaults(act=_explain)


def _explain(namespace: argparse.Namespace) -> int:
    loaded = _load_offline(namespace)
    service = explain.choose_service(loaded, namespace.service, namespace.url)
    answer = explain.explain(service, _payload_of(namespace), _source_of(namespace.source),
                             _seed_of(loaded))
    if namespace.json:
        cli.print_json(answer.as_json())
    else:
        cli.print_fields(explain.lines(answer))
    return 0


def _seed_of(loaded: config.Config) -> bytes:
    """The cluster's seed, as far as this user may know; else a word about it."""
    try:
        return host.check_secret(loaded.file, loaded.secret_file).seed
    except ConfigError as error:
        if os.path.exists(loaded.secret_file) or loaded.secret_file != DEFAULT_SECRET:
            cli.print_warnings(PROGRAM, [f"the cluster's seed is not known here, so if it has one, "
                                         f"the hash is another: {error}"])
        return b""


def _payload_of(namespace: argparse.Namespace) -> bytes:
    if (namespace.url is None) == (namespace.payload is None):
        raise ConfigError(COMMAND_LINE, "URL", namespace.url, "either a URL or --payload FILE")
    if namespace.url is not None:
        return explain.first_payload(namespace.url, namespace.header)
    path = "/dev/stdin" if namespace.payload == "-" else namespace.payload
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            COMMAND_LINE, "--payload", path, f"a readable file ({error.strerror})"
        ) from None


def _source_of(text: str | None) -> tuple[IPv4Address, int] | None:
    if text is None:
        return None
    address, _, port = text.partition(":")
    try:
        return ipv4("")(address), port_number(port or "1")
    except ValueError:
        raise ConfigError(
            COMMAND_LINE, flag_name("source"), text, "ADDR or ADDR:PORT of a client, with IPv4"
        ) from None


# --- replay ---


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay", usage=f"{PROGRAM} replay [FLAG ...] IN.pcap OUT.pcap",
        help="what would it do with this traffic?",
        description="Run a capture through the data path, offline and without root: what would "
                    "become of each packet, and which packets would be sent? The clock is the "
                    "capture's. A capture of another server's traffic (its address as --vip) is "
                    "renumbered as if the balancer had answered its SYNs.",
    )
    cli.add_replay_flags(parser)
    _add_config_flags(parser)
    parser.set_defaults(act=_replay)


def _replay(namespace: argparse.Namespace) -> int:
    from balancer.datapath import Datapath
    from balancer.tools.rebase import Rebased

    loaded = _load_offline(namespace)
    secret = cli.replay_secrets(namespace, loaded.file, loaded.secret_file)
    loaded = replace(loaded, hash_seed=secret.seed)
    datapath = Datapath(loaded, secret.keys, random=Random(namespace.seed))
    rebased = Rebased(datapath, loaded)

    def report() -> list[str]:
        notes = [
            f"{sample.labels['service']}: {sample.value:g} connections to backend "
            f"{sample.labels['backend']}"
            for sample in datapath.samples() if sample.name == "backend_handoffs"
        ]
        if rebased.connections:
            notes.append(f"{rebased.connections} connections were answered by another server and "
                         "have been renumbered")
        return notes

    return cli.replay_capture(rebased, namespace, report)


# --- trace ---


def _add_trace(commands: Any) -> None:
    parser = commands.add_parser(
        "trace", usage=f"{PROGRAM} trace [FLAG ...]",
        help="what is decided about packets now, and why?",
        description="Show what the running balancer decides, a line for each packet, live, of both "
                    "engines; until it is interrupted. tcpdump does not see the packets of the "
                    "fast engine, this does. The balancer pays for it only meanwhile. One "
                    "process at a time.",
    )
    parser.add_argument("--client", metavar="NET", help="packets from this address or network")
    parser.add_argument("--key", metavar="GLOB",
                        help="connections whose key is like this, as '/shop/*'; those whose first "
                             "payload is seen")
    parser.add_argument("--reason", metavar="R", action="append",
                        help="decisions with this reason, as in the metrics; repeatable")
    parser.add_argument("--pcap", metavar="FILE",
                        help="write the packets to a pcapng file, too, with the decision as their "
                             "comment; Wireshark shows it")
    parser.add_argument("--count", metavar="N", type=int, help="end after so many")
    parser.add_argument("--for", metavar="SECONDS", type=float, help="end after this time")
    parser.add_argument("--rate", metavar="N", type=int,
                        help="most decisions a second that are shown, of each engine; the others "
                             "are counted (default 1000)")
    parser.add_argument("--queue", metavar="N", type=number,
                        help="the balancer with this NFQUEUE number, if it is not the file's")
    parser.add_argument("--config", metavar="FILE",
                        help=f"the balancer's file (default {config.DEFAULT_FILE}, where it "
                             "exists)")
    cli.add_json(parser)
    parser.set_defaults(act=_trace)


def _trace(namespace: argparse.Namespace) -> int:
    given = {"queue": namespace.queue} if "queue" in namespace else {}
    loaded = config.load(getattr(namespace, "config", None), given)
    from balancer.trace import command

    return command.run(namespace, loaded.queue)
