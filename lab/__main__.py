"""`python -m lab`: what `lab/run` becomes once everything is installed."""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from lab.node import REPOSITORY
from lab.topology import PAIRS

_SHORT = "tests/lab/test_pair.py"
_WAITING = ("tests/lab", "tests/attacks")  # labs, in which tests mostly wait
_KERNELS = "tests/lab/test_kernels.py"
_FUZZ, _FUZZ_WIRE = "tests/attacks/test_fuzz.py", "tests/lab/test_pair_fuzz.py"
_A_MINUTE_S = 60
_DESCRIPTION = """\
The network of the Vagrantfile in network namespaces: a client, a balancer, and two
backends with real nginx. It needs root, and touches nothing outside its namespaces."""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="lab/run", description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command",
                                     required=True)
    demo = commands.add_parser(
        "demo", help="build it, show that the pair works, take it down",
        description="Build the network, start the real programs, send real requests, show what "
                    "happened, and take everything down. Exit code 0 only if every check held.",
    )
    demo.add_argument("--json", action="store_true", help="print for programs")
    test = commands.add_parser(
        "test", help="run the test suite",
        description="Run the test suite with pytest, and some end-to-end tests once more with the "
                    "fast engine (--pair has them all). What follows is given to pytest, which "
                    "then runs alone, for example: lab/run test tests/unit -k cookie. Long tests "
                    "have a short form; with lab/run test -- --thorough, their full length.",
    )
    test.add_argument("--repeat", metavar="N", type=int, default=1,
                      help="so many times in a row, until it fails (default 1)")
    test.add_argument("--pair", metavar="KIND", choices=(*PAIRS, "all"),
                      help="end-to-end tests with this kind of pair, the balancer's engine and the "
                           "bridge's: " + ", ".join(PAIRS) + ", or all of them in turn; what "
                           "follows is given to pytest (default: tests/lab/test_pair*.py)")
    test.add_argument("--kernel", metavar="VERSION", choices=("6.1", "6.12"),
                      help="on the kernel of Debian 12 (6.1) or 13 (6.12), booted by qemu; what "
                           "follows is given to pytest (default: tests/golden tests/bpf)")
    commands.add_parser("up", help="build it, start everything, and leave it running")
    commands.add_parser("down", help="take down what `up` left running")
    shell = commands.add_parser("shell", help="a shell, or a command, on a host of that lab")
    shell.add_argument("node", metavar="NODE", nargs="?", default="client",
                       help="client (default), balancer, backend1, backend2 or switch")
    shell.add_argument("words", metavar="COMMAND ...", nargs=argparse.REMAINDER,
                       help="instead of a shell")
    fuzz = commands.add_parser(
        "fuzz", help="mutated packets through the programs, and on the wire",
        description="Mutate packets: so many through each program by test runs and through Python, "
                    "which must say the same, and for some minutes on the wire to every kind of "
                    "pair. Exit code 0 only if nothing differed, and real requests were served.",
    )
    fuzz.add_argument("--minutes", metavar="N", type=float, default=1,
                      help="on the wire, for each kind of pair (default 1)")
    fuzz.add_argument("--packets", metavar="N", type=int, default=1_000_000,
                      help="for each program (default 1000000, which takes some ten minutes)")
    fuzz.add_argument("--seed", metavar="N", type=int, default=1,
                      help="others (default 1)")
    commands.add_parser("bench", help="measure, beside HAProxy and nginx; --help says more",
                        add_help=False)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run a command. Returns: its exit code."""
    namespace, rest = make_parser().parse_known_args(arguments)
    if rest and namespace.command not in ("test", "bench"):
        make_parser().error(f"unrecognized arguments: {' '.join(rest)}")
    if namespace.command == "demo":
        return importlib.import_module("lab.demo").main(namespace.json)
    if namespace.command == "test":
        if namespace.kernel:
            return importlib.import_module("lab.kernel").main(namespace.kernel, _words(rest))
        if namespace.pair:
            return _test_pairs(namespace.pair, _words(rest))
        return _test(namespace.repeat, _words(rest))
    if namespace.command == "fuzz":
        return _fuzz(namespace.minutes, namespace.packets, namespace.seed)
    if namespace.command == "bench":
        return importlib.import_module("lab.bench").main(rest)
    keep = importlib.import_module("lab.keep")
    if namespace.command == "shell":
        return keep.shell(namespace.node, namespace.words)
    return {"up": keep.up, "down": keep.down}[namespace.command]()


def _words(arguments: Sequence[str]) -> list[str]:
    """What is for pytest."""
    return [argument for argument in arguments if argument != "--"]


def _test_pairs(kind: str, arguments: Sequence[str]) -> int:
    """The end-to-end tests with one kind of pair, or all. Returns: an exit code that is not 0."""
    if all(argument.startswith("-") for argument in arguments):
        files = sorted((REPOSITORY / "tests/lab").glob("test_pair*.py"))
        arguments = [*arguments, *map(str, files)]
    codes = []
    for each in PAIRS if kind == "all" else [kind]:
        print(f"lab: pair {each}", flush=True)
        codes.append(_pytest(arguments, L3DSR_PAIR=each))
    return max(codes)


def _pytest(arguments: Sequence[str], **environment: str) -> int:
    """pytest, in a process of its own. Returns: its exit code."""
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False,
                          cwd=REPOSITORY, env=os.environ | environment).returncode


def _test(repeat: int, arguments: Sequence[str]) -> int:
    """pytest, in a process of its own each time. Returns: the first exit code that is not 0."""
    for number in range(1, repeat + 1):
        if repeat > 1:
            print(f"lab: run {number} of {repeat}", flush=True)
        code = _pytest(arguments) if arguments else _whole() or _test_pairs("adopt", [_SHORT])
        if code:
            return code
    return 0


def _whole() -> int:
    """All tests: labs one after the other, and beside them what mostly reckons, which is told of
    afterwards. Returns: an exit code that is not 0, if there is one.
    """
    others = sorted(
        str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "tests").iterdir()
        if any(path.glob("test_*.py")) and str(path.relative_to(REPOSITORY)) not in _WAITING)
    with tempfile.TemporaryFile("w+") as said:
        beside = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *others, _KERNELS],
            cwd=REPOSITORY, stdout=said, stderr=subprocess.STDOUT)
        try:
            code = _pytest([*_WAITING, f"--ignore={_KERNELS}"])
            code = beside.wait() or code
        finally:
            beside.terminate()
        said.seek(0)
        print(said.read(), flush=True)
    return code


def _fuzz(minutes: float, packets: int, seed: int) -> int:
    """Both kinds of it. Returns: an exit code."""
    common = [f"--seed={seed}", "-q"]
    code = _pytest([*common, f"--fuzz={packets}", _FUZZ])
    return code or _test_pairs("all", [*common, f"--fuzz-s={minutes * _A_MINUTE_S}", _FUZZ_WIRE])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
