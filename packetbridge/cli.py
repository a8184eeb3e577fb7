"""The command line of the packetbridge."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from random import Random
from typing import Any

from common.encap import dscp
from common.engine import commands
from common.settings import COMMAND_LINE, ConfigError, cli, host
from common.wire import Malformed
from common.wire.family import look
from common.wire.packet import TCP
from common.wire.tcp import Segment
from packetbridge import config
from packetbridge.plan import plan_of
from packetbridge.tools import operate

PROGRAM = "packetbridge"
_DESCRIPTION = """\
Let an unmodified server answer for a virtual IP (VIP). Takes the connections that a
balancer hands over, opens each one at the local server with the client's own address
and options, and lets the replies go straight to the client.

Without arguments it serves what /etc/l3dsr/packetbridge.toml says or, where there is no
such file, the first backend of the Vagrantfile's network. It needs root."""

_EXAMPLES = """\
examples:
  sudo packetbridge --interface eth0 --vip 3=192.0.2.10:80 --server 192.0.2.30:8080
  sudo packetbridge --config bridge.toml    any number of services, as the file says
  packetbridge check bridge.toml            is this file right, and what does it say?
  sudo packetbridge reload                  take what the file says now, while packets flow
  sudo packetbridge doctor                  what is wrong on this host?
  packetbridge replay in.pcap out.pcap      what would it do with this traffic?
  sudo packetbridge services                how does the one that runs serve them?"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program. Returns: its exit code; 2 is a configuration that cannot be used."""
    return cli.run(PROGRAM, make_parser(), arguments)


def make_parser() -> cli.Parser:
    """The whole command line."""
    parser = cli.make_parser(PROGRAM, _DESCRIPTION, _EXAMPLES)
    _add_config_flags(parser)
    parser.set_defaults(act=_serve)
    parsers = cli.add_commands(parser)
    _add_check(parsers)
    commands.add_reload(parsers, PROGRAM)
    _add_doctor(parsers)
    _add_replay(parsers)
    _add_detach(parsers)
    operate.add(parsers, PROGRAM)
    return parser


def _add_config_flags(parser: cli.Parser) -> None:
    cli.add_config_flags(parser, config.Config, config.Service,
                         "services of one server (a file has any number of both)",
                         config.DEFAULT_FILE)


def _load(namespace: argparse.Namespace, view: host.HostView | None = None) -> config.Config:
    """view: of the host that the settings are for, where they are to be used or checked."""
    return config.load(getattr(namespace, "config", None),
                       cli.given(namespace, config.Config, config.Service), view)


def _load_offline(namespace: argparse.Namespace) -> config.Config:
    """For what is tried without the host."""
    loaded = _load(namespace)
    cli.warn_of_lab(PROGRAM, loaded, config.Service, namespace, config.DEFAULT_FILE)
    return loaded


def _serve(namespace: argparse.Namespace) -> int:
    loaded = _load(namespace, host.look())
    host.check_rights(PROGRAM)
    from packetbridge import daemon

    return daemon.run(loaded, lambda: _load(namespace, host.look()))


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
    loaded = _load(namespace, view)
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
        ("service", "vip", "dscp", "server", "wscale"),
        [(service.name, f"{service.vip}:{service.port}", service.dscp,
          f"{service.server}:{service.server_port}", service.wscale)
         for service in loaded.services],
    )
    cli.print_warnings(PROGRAM, warnings)
    return 0


def _described(service: config.Service) -> dict[str, Any]:
    """A service for programs."""
    return {
        "name": service.name, "dscp": service.dscp, "vip": str(service.vip),
        "port": service.port, "server": str(service.server),
        "server_port": service.server_port, "wscale": service.wscale,
    }


# --- doctor ---


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", usage=f"{PROGRAM} doctor [FLAG ...]",
        help="what is wrong on this host, and what to do about it?",
        description="Ask the packetbridge that runs on this host, compare it with its "
                    "configuration, look at the servers, and say what is wrong, with a remedy for "
                    "each. As root. Exit code 0 only if all is well. The way from a balancer is "
                    "for `balancer doctor`.",
    )
    _add_config_flags(parser)
    cli.add_json(parser)
    parser.set_defaults(act=_doctor)


def _doctor(namespace: argparse.Namespace) -> int:
    view = host.look()
    loaded = _load(namespace, view)
    host.check_rights(f"{PROGRAM} doctor")
    secrets = host.check_secret(loaded.file, loaded.secret_file).keys_at(time.time())
    address = loaded.address or config.first_own(loaded.services,
                                                 view.addresses_of(loaded.interface))
    from common.doctor import report
    from packetbridge import doctor

    assert address is not None  # else it has been refused
    findings = doctor.examine(loaded, address, secrets)
    title = f"services: {len(loaded.services)}, at {address}"
    return report.show(title, doctor.diagnose(findings), namespace.json)


# --- detach ---


def _add_detach(commands: Any) -> None:
    parser = commands.add_parser(
        "detach", usage=f"{PROGRAM} detach [FLAG ...]",
        help="take the fast engine off when the program has ended, undo all changes",
        description="The fast engine keeps working when the program was killed, or ended by "
                    "SIGUSR2 for a restart. This takes it off and undoes all changes to the host; "
                    "its connections end. The program itself must have ended.",
    )
    _add_config_flags(parser)
    parser.set_defaults(act=_detach)


def _detach(namespace: argparse.Namespace) -> int:
    loaded = _load(namespace)
    host.check_rights(PROGRAM)
    from packetbridge import daemon

    return daemon.detach(loaded)


# --- replay ---


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay", usage=f"{PROGRAM} replay [FLAG ...] IN.pcap OUT.pcap",
        help="what would it do with this traffic?",
        description="Run a capture of both sides, the balancer's packets and the server's, through "
                    "the data path, offline and without root. The clock is the capture's.",
    )
    cli.add_replay_flags(parser)
    _add_config_flags(parser)
    parser.set_defaults(act=_replay)


def _replay(namespace: argparse.Namespace) -> int:
    from packetbridge.datapath import Datapath
    from packetbridge.tools.standin import StandIn

    loaded = _load_offline(namespace)
    secrets = cli.replay_secrets(namespace, loaded.file, loaded.secret_file).keys
    address, has_server = _look_through(namespace.source, loaded)
    loaded = dataclasses.replace(loaded, address=address)
    datapath = Datapath(loaded, secrets, random=Random(namespace.seed))
    standin = StandIn(datapath, loaded)

    def report() -> list[str]:
        notes = [f"the bridge's address is {address}"]
        if standin.answers:
            notes.append(f"{standin.answers} handshakes were answered by a stand-in: the capture "
                         "has no packet of the server")
        return notes

    return cli.replay_capture(datapath if has_server else standin, namespace, report)


def _look_through(path: str, loaded: config.Config) -> tuple[IPv4Address, bool]:
    """The bridge's address, and whether a server's own packets are in the capture.

    Where it is not configured, the address is the destination of the first tagged packet.
    Raises: ConfigError.
    """
    address = loaded.address
    names = {(service.dscp, service.endpoint.port_octets) for service in loaded.services}
    ends = {
        service.server.packed + service.server_port.to_bytes(2, "big")
        for service in loaded.services
    }
    vips = {service.vip.packed for service in loaded.services}
    has_server = False
    for packet in map(look, cli.packets_of(path)):
        try:
            segment = Segment(packet)
        except Malformed:
            continue
        if packet.protocol != TCP:
            continue
        has_server = has_server or packet.src + segment.sport in ends
        tagged = (dscp.of_tos(packet.tos), segment.dport) in names
        if address is None and tagged and packet.dst not in vips:
            address = IPv4Address(packet.dst)
    if address is None:
        raise ConfigError(
            COMMAND_LINE, "--address", None,
            f"the bridge's own address, since {path} has no packet with a service's DSCP and port",
        )
    return address, has_server
