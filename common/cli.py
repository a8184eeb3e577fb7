"""What the two programs' command lines share."""

import argparse
import json
import sys
from collections.abc import Callable

from common import __version__, capture, settings
from common.cookie import Secrets
from common.engine import Datapath
from common.settings import ConfigError

EXIT_CONFIG = 2


def parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of a program, with what every program has."""
    made = argparse.ArgumentParser(
        prog=program, description=description, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"{program} {__version__}")
    return made


def add_global_flags(made: argparse.ArgumentParser, default_file: str) -> None:
    """Flags that both programs have; each is also a key at the top of the TOML file."""
    add = made.add_argument
    add("--config", metavar="FILE", help=f"TOML file (default {default_file}, if it exists)")
    add("--interface", metavar="NAME", help="where packets come in (default eth1)")
    add("--secret-file", metavar="FILE",
        help="the cluster's secret (default /etc/l3dsr/secret; `balancer keygen` makes one)")
    add("--engine", metavar="ENGINE", help="auto, portable or fast (default auto)")
    add("--max-flows", metavar="N", help="size of the flow table (default 1000000)")
    add("--queue", metavar="N", help="NFQUEUE number")
    add("--metrics", metavar="ADDR:PORT", help="answer Prometheus there (default: not at all)")
    add("--log-level", metavar="LEVEL", help="debug, info, warning or error (default info)")
    add("--log-format", metavar="FORMAT", help="text or json (default text)")


def add_replay(commands, load: Callable, make_datapath: Callable[..., Datapath]) -> None:
    """The subcommand `replay`."""
    made = commands.add_parser(
        "replay", help="what would it do with a capture? offline, without root",
        description="Run the data path over a capture and write what it would send. The clock is "
                    "the capture's. Nothing is sent.",
    )
    made.add_argument("source", metavar="IN.pcap", help="pcap or pcapng")
    made.add_argument("target", metavar="OUT.pcap", help="what would be sent, as raw IP")
    made.add_argument("--config", metavar="FILE")
    made.add_argument("--secret-file", metavar="FILE")
    made.add_argument("--secret", metavar="HEX", help="the key itself, instead of a file")
    made.add_argument("--verbose", action="store_true", help="a line for each packet")
    made.add_argument("--json", action="store_true", help="the summary for programs")
    made.set_defaults(run=lambda arguments: _replay(arguments, load, make_datapath))


def _replay(arguments: argparse.Namespace, load: Callable, make_datapath: Callable) -> int:
    config = load(argparse.Namespace(config=arguments.config, secret_file=arguments.secret_file))
    if arguments.secret:
        try:
            secrets = Secrets.parse(arguments.secret)
        except ValueError as error:
            raise ConfigError(settings.COMMAND_LINE, "--secret", "…", f"32 hex digits ({error})") \
                from None
    else:
        secrets = settings.check_secret(config.file, config.secret_file)
    try:
        table, summary = capture.run(
            make_datapath(config, secrets), arguments.source, arguments.target, arguments.verbose
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            settings.COMMAND_LINE, "capture", arguments.source, f"a readable capture ({error})"
        ) from None
    print(json.dumps(summary) if arguments.json else table)
    return 0


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as aligned columns, the first one being the heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def run(program: str, arguments: argparse.Namespace) -> int:
    """Carry out what was asked for; a wrong configuration is one message and exit code 2."""
    try:
        return arguments.run(arguments)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_CONFIG
