"""The command line of the packetbridge."""

import argparse
import dataclasses
import json
import sys
from ipaddress import IPv4Address
from random import Random

from common import cli, settings
from common.cookie import Secrets
from common.settings import ConfigError
from packetbridge import config

_DESCRIPTION = """\
Let an unmodified server answer for a virtual IP. Takes the connections that a
balancer hands over, opens each one at the local server with the client's own address
and options, and lets the replies go straight to the client.

Without arguments it serves the first backend of the Vagrantfile's network."""

_EPILOG = """\
examples:
  sudo packetbridge --interface eth0 --vip 3=192.0.2.10:80 --server 192.0.2.30:8080
  packetbridge check /etc/l3dsr/packetbridge.toml
  packetbridge replay in.pcap out.pcap      what would it do with this traffic?"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = cli.parser("packetbridge", _DESCRIPTION, _EPILOG)
    cli.add_global_flags(made, str(config.DEFAULT_FILE))
    made.add_argument("--address", metavar="ADDR",
                      help="the bridge's own, that balancers send to (default: the interface's first)")
    made.add_argument("--mode", metavar="MODE", help="auto, splice or adopt (default auto)")
    group = made.add_argument_group("services (or in the file)")
    group.add_argument("--vip", metavar="DSCP=ADDR:PORT", action="append",
                       help=f"a virtual IP and the codepoint that names it; repeatable "
                            f"(default {config.DEFAULT_VIP})")
    group.add_argument("--server", metavar="ADDR:PORT",
                       help=f"the server behind it (default {config.DEFAULT_SERVER})")
    made.set_defaults(run=_serve)
    commands = made.add_subparsers(metavar="command", title="commands (none: serve)")
    check = commands.add_parser("check", help="validate a configuration and print its services")
    check.add_argument("file", metavar="FILE", nargs="?")
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(run=_check)
    cli.add_replay(commands, config.load, _make_datapath)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns: its exit code."""
    return cli.run("packetbridge", build_parser().parse_args(argv))


def _serve(arguments: argparse.Namespace) -> int:
    from packetbridge import daemon

    flags = argparse.Namespace(
        **{key: value for key, value in vars(arguments).items() if key != "run"}
    )
    return daemon.run(config.load(flags))


def _make_datapath(loaded: config.Config, secrets: Secrets):
    from packetbridge.datapath import Datapath

    if loaded.address is None:  # no interface to ask; the lab's first bridge
        loaded = dataclasses.replace(loaded, address=IPv4Address("192.168.33.20"))
    return Datapath(loaded, secrets, random=Random(0))


def _check(arguments: argparse.Namespace) -> int:
    loaded = config.load(argparse.Namespace(config=arguments.file))
    if arguments.json:
        print(json.dumps(dataclasses.asdict(loaded), default=str))
        return 0
    rows = [("service", "dscp", "vip", "server")]
    rows += [
        (service.name, str(service.dscp), f"{service.vip}:{service.port}",
         f"{service.server}:{service.server_port}")
        for service in loaded.services
    ]
    print(cli.table(rows))
    try:
        settings.check_interface(loaded.file, loaded.interface)
        settings.check_secret(loaded.file, loaded.secret_file)
    except ConfigError as warning:
        print(f"on this host it would not start: {warning}", file=sys.stderr)
    return 0
