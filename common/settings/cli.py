"""What the two command lines share: flags, one-line errors, tables, JSON, a look at the host."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common import __version__
from common.capture import pcap, replay
from common.cluster.secrets import SecretFile, Secrets
from common.settings import COMMAND_LINE, ConfigError, host, shared
from common.settings.flags import add_flags, keys_of

BAD_CONFIGURATION = 2
_INTERRUPTED, _BROKEN_PIPE = 130, 141  # as a shell tells of SIGINT and SIGPIPE


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose flags have no defaults of their own.

    A flag that is not given is not in the namespace, so a file's value can count.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(argument_default=argparse.SUPPRESS, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse, which then takes the value of an unknown flag for a command: see `error`."""
        self._arguments = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Exit 2 with one line, which is about the first unknown flag if there is one."""
        unknown = next((argument.partition("=")[0] for argument in self._arguments
                        if argument.startswith("--")
                        and argument.partition("=")[0] not in self._option_string_actions), None)
        close = unknown and difflib.get_close_matches(unknown, self._option_string_actions, 1)
        if close and ("unrecognized" in message or "invalid choice" in message):
            message = f"there is no {unknown}; did you mean {close[0]}?"
        else:
            message += f"; see {self.prog} --help"
        self.exit(BAD_CONFIGURATION, f"{self.prog}: {COMMAND_LINE}: {message}\n")


def make_parser(program: str, description: str, epilog: str) -> Parser:
    """The parser of a program."""
    usage = f"{program} [FLAG ...]\n       {program} COMMAND [-h] ..."
    parser = Parser(prog=program, usage=usage, description=description, epilog=epilog,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_config_flags(
    parser: Parser, config: type, service: type, services: str, default_file: Path
) -> None:
    """The flags of a program's settings. services: the title of those that describe a service."""
    group = parser.add_argument_group(
        services, f"Defaults \"in the lab\" hold only where the interface has an address in "
                  f"{shared.LAB}, the network of the Vagrantfile.")
    add_flags(group, service)
    group = parser.add_argument_group(
        "settings (they count before the file's; in the file their names have _ for -)"
    )
    group.add_argument("--config", metavar="FILE",
                       help=f"TOML file (default {default_file}, where it exists)")
    add_flags(group, config)


def add_replay_flags(parser: Parser) -> None:
    """What `replay` takes besides the configuration."""
    parser.add_argument("source", metavar="IN.pcap", help="pcap or pcapng, as tcpdump -w writes")
    parser.add_argument("target", metavar="OUT.pcap",
                        help="where to write the packets that would be sent, as raw IP")
    parser.add_argument("--secret", metavar="HEX",
                        help="the secret itself, instead of --secret-file")
    parser.add_argument("--seed", metavar="N", type=int, default=0,
                        help="seed of random choices (default 0)")
    parser.add_argument("--verbose", action="store_true", default=False,
                        help="a line for each packet")
    add_json(parser)


def add_commands(parser: Parser) -> Any:
    """What the subcommands' parsers are added to."""
    return parser.add_subparsers(title="commands (without one: serve)", metavar="COMMAND",
                                 prog=parser.prog, parser_class=Parser)


def add_json(parser: Parser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")


def run(program: str, parser: Parser, arguments: Sequence[str] | None) -> int:
    """Carry out a command line; its `act` takes the namespace and returns the exit code.

    A configuration that cannot be used is a line on stderr for each fault, and exit code 2.
    """
    try:
        namespace = parser.parse_args(arguments)
        act: Callable[[argparse.Namespace], int] = namespace.act
        return act(namespace)
    except ConfigError as error:
        for fault in error.faults:
            print(f"{program}: {fault}", file=sys.stderr)
        return BAD_CONFIGURATION
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED


def given(namespace: argparse.Namespace, *shapes: type) -> dict[str, Any]:
    """The settings that were given as flags."""
    keys = {key for shape in shapes for key in keys_of(shape)}
    return {key: value for key, value in vars(namespace).items() if key in keys}


def print_json(value: object) -> None:
    """For programs."""
    print(json.dumps(value, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(head), *cells]) for column in range(len(head))]
    right = [bool(rows) and all(isinstance(row[column], int) for row in rows)
             for column in range(len(head))]
    for line in [list(head), *cells]:
        padded = [cell.rjust(width) if to_right else cell.ljust(width)
                  for cell, width, to_right in zip(line, widths, right, strict=True)]
        print("  ".join(padded).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """A name and its value a line."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        print(f"{name:<{width}}  {value}")


def warn_of_lab(
    program: str, loaded: shared.Shared, service: type, namespace: argparse.Namespace, file: Path
) -> None:
    """Say so where nothing says which services there are, and those of the lab are shown."""
    if loaded.file == COMMAND_LINE and not given(namespace, service):
        print_warnings(program, [f"there is no {file}: this is about the Vagrantfile's network"])


def print_warnings(program: str, warnings: Sequence[str]) -> None:
    """To stderr, a line each."""
    for warning in warnings:
        print(f"{program}: warning: {warning}", file=sys.stderr)


def warnings_of(loaded: shared.Shared, view: host.HostView) -> list[str]:
    """What only `run` needs, and `check` may miss.

    Raises: ConfigError where the secret is missing, malformed, or open to others.
    """
    warnings = []
    if loaded.interface not in view.interfaces:
        warnings.append(str(ConfigError(
            loaded.file, "interface", loaded.interface,
            f"an interface of this host ({', '.join(view.usable)}); what is to be seen of the host "
            "is not checked",
        )))
    path = Path(loaded.secret_file)
    if path.exists() and not os.access(path, os.R_OK):
        warnings.append(f"{path} cannot be read by this user: its content is not checked")
    else:
        host.check_secret(loaded.file, loaded.secret_file)
    return warnings


def replay_secrets(namespace: argparse.Namespace, file: str, secret_file: str) -> SecretFile:
    """The secret for a replay: `--secret HEX`, else that of the secret file."""
    text = getattr(namespace, "secret", None)
    if text is None:
        return host.check_secret(file, secret_file)
    try:
        return SecretFile(Secrets.parse(text.replace(",", " ")))
    except ValueError as error:
        raise ConfigError(
            COMMAND_LINE, "--secret", "…", f"32 hex digits, or two times 32 with a comma ({error})"
        ) from None


def packets_of(path: str) -> Iterator[bytes]:
    """The IPv4 packets of a capture. Raises: ConfigError."""
    return (captured.packet for captured in _captured(path) if captured.packet is not None)


def _captured(path: str) -> Iterator[pcap.Captured]:
    try:
        return pcap.read(path)
    except (OSError, pcap.CaptureError) as error:
        raise ConfigError(
            COMMAND_LINE, "IN.pcap", path, f"a capture in pcap or pcapng form ({error})"
        ) from None


def replay_capture(
    datapath: replay.Datapath, namespace: argparse.Namespace, report: Callable[[], list[str]],
) -> int:
    """Replay `source` into `target` and print what became of it.

    report: further lines for the end, asked for when the capture is through.
    """
    summary = replay.Summary()
    steps: list[dict[str, Any]] = []
    packets = summary.watch(_captured(namespace.source))
    target = Path(namespace.target)
    if target.exists() and target.samefile(namespace.source):
        raise ConfigError(COMMAND_LINE, "OUT.pcap", namespace.target, "a file other than IN.pcap")
    if namespace.verbose and not namespace.json:
        print(replay.LINE_HEAD)
    try:
        sent = _carry_out(replay.replay(datapath, packets), summary, namespace, steps)
        pcap.write(target, sent)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(
            COMMAND_LINE, "OUT.pcap", namespace.target,
            f"a file that can be written ({error.strerror})",
        ) from None
    notes = [*summary.notes(), *report()]
    if namespace.json:
        print_json({"packets": steps, **summary.as_json(), "notes": notes})
        return 0
    print_table(("verdict", "reason", "packets"), summary.rows())
    print(f"{summary.frames} frames read, {summary.sent} packets written to {namespace.target}")
    for note in notes:
        print(note)
    return 0


def _carry_out(
    steps: Iterable[replay.Step], summary: replay.Summary, namespace: argparse.Namespace,
    described: list[dict[str, Any]],
) -> Iterator[tuple[int, bytes]]:
    """Count and describe each step, and give what it sends."""
    start_ns = None
    for step in steps:
        start_ns = step.time_ns if start_ns is None else start_ns
        summary.add(step)
        if namespace.verbose:
            line = replay.describe(step, (step.time_ns - start_ns) / 1e9)
            if namespace.json:
                described.append(line)
            else:
                print(replay.LINE.format(**line))
        for packet in step.sent:
            yield step.time_ns, packet
