"""Compile eBPF programs: `compile(source)` gives the object file, fresh.

Also run by the package's build (setup.py), so it needs nothing but the standard library.

Constants that both languages need are Python's. C gets them from headers that are made here, from
the text of the modules: nothing of them need be installed.
"""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("balancer", "packetbridge")
NEEDED = "clang, llvm, libbpf-dev and linux-libc-dev"
# v3: 32-bit registers and jumps, which every kernel since 5.1 verifies. Strict aliasing: clang 14
# moved a read of a header around the write of its `tos`.
FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-fno-strict-aliasing", "-Wall")

# Headers of constants: for each the modules, a prefix for C, and which of a module's constants.
CONSTANTS = {
    "common/bpf/include/constants.h": (
        ("common/cluster/cookie.py", "", ("EPOCH_S", "SKEW_S", "WSCALE_NONE", "MSS_IPV4")),
        ("common/cluster/stamps.py", "", (
            "MIN_ROUND_TRIP_MS", "MAX_ROUND_TRIP_MS", "CLOCK_BITS", "CLOCK_MASK", "T0_MAC_SHIFT",
            "SECRET_SHIFT", "STAMP_MAC_MASK", "T0_MASK", "T0_VERSION_1_MASK", "SPREAD")),
        ("common/flow/guesses.py", "", ("GUESS_PERIOD_MS", "MAX_GUESSES")),
        ("common/histogram.py", "HISTOGRAM_", ("BOUNDS",)),
        ("common/wire/tcp.py", "", ("FIN", "SYN", "RST", "PSH", "ACK")),
        ("common/wire/options.py", "", ("WSCALE_MAX", "MSS_DEFAULT")),
        ("common/wire/options.py", "OPTION_", (
            "END", "NOP", "MSS", "WSCALE", "SACK_PERMITTED", "SACK", "TIMESTAMPS")),
        ("common/wire/icmp.py", "ICMP_", (
            "DEST_UNREACHABLE", "TIME_EXCEEDED", "PARAMETER_PROBLEM")),
    ),
    "balancer/offload/bpf/constants.h": (
        ("common/flow/store.py", "", ("SEEN_MS",)),
        ("balancer/flows.py", "", (
            "OPEN", "DOUBTED", "HALF_CLOSED", "RESET", "NEW", "TAKEN_OVER", "REUSE_MS",
            "QUIET_MS")),
        ("balancer/modes/split/handshake.py", "", ("WINDOW",)),
        ("balancer/modes/split/takeover.py", "", (
            "WRAP_SLACK_MS", "VOUCHED_COUNT", "REACH", "KEPT_MS", "PREFIXES",
            "PREFIX_LEN", "PREFIX_SHARE")),
        ("balancer/offload/flow_map.py", "", (
            "ENTERED", "TABLE_FULL", "CROWDED", "IDLE", "GOES_UP", "BARE", "SYN_SEEN", "REPEATED",
            "STATE_MASK", "CREATED_BITS")),
        ("balancer/offload/maps.py", "", (
            "MAX_SERVICES", "MAX_BACKENDS", "CANDIDATES", "SNAP_MAX", "RING_OCTETS")),
        ("balancer/pool/schedule.py", "", ("TABLE_SIZE",)),
    ),
    "packetbridge/offload/bpf/constants.h": (
        ("packetbridge/flows.py", "", (
            "CLIENT_FIN", "SERVER_FIN", "CLIENT_FIN_ACKED", "SERVER_FIN_ACKED")),
        ("packetbridge/offload/splice.py", "", ("WAS_RESET",)),
        ("packetbridge/modes/splice.py", "", ("PLAUSIBLE_LEN",)),
        ("packetbridge/modes/spent.py", "", ("SPENT_IN_BUCKET",)),
    ),
}


class BuildError(Exception):
    """A program cannot be compiled; str() is what the compiler says, or that there is none."""


def compile(source: Path, output: Path | None = None) -> Path:
    """The object file of a C source, compiled if it is missing or older than what it is made of.

    output: default beside it, `x.bpf.c` → `x.bpf.o`. Includes are looked for from the directory
    that has the packages (`#include "common/bpf/include/x.h"`) and beside the source.
    Raises: BuildError.
    """
    output = output or source.with_suffix(".o")
    write_constants()
    if output.exists() and not _is_stale(source, output):
        return output
    clang = os.environ.get("CLANG") or shutil.which("clang")
    if not clang:
        raise BuildError(f"{source.name}: there is no clang; eBPF programs need {NEEDED}")
    # Several may do this at once: each in a file of its own, and the last one stays.
    descriptor, draft = tempfile.mkstemp(dir=output.parent, prefix=output.name, suffix=".new")
    os.close(descriptor)
    try:
        _run([clang, *FLAGS, *_include_flags(source), "-c", str(source), "-o", draft], source)
        strip = shutil.which("llvm-strip")
        if strip:  # DWARF goes, BTF stays
            _run([strip, "-g", draft], source)
        os.chmod(draft, 0o644)
        os.replace(draft, output)
    finally:
        Path(draft).unlink(missing_ok=True)
    return output


def sources() -> list[Path]:
    """The programs of this tree."""
    return sorted(path for package in PACKAGES
                  for path in (ROOT / package).glob("offload/bpf/*.bpf.c"))


def compile_all() -> list[Path]:
    """All programs of this tree. Those that cannot be compiled are left out, with a warning.

    L3DSR_FAST=require in the environment makes that an error. Raises: BuildError.
    """
    made = []
    for source in sources():
        try:
            made.append(compile(source))
        except BuildError as error:
            if os.environ.get("L3DSR_FAST") == "require":
                raise
            print(f"warning: the fast engine is left out, the portable one remains: {error}",
                  file=sys.stderr)
    return made


def object_of(package: str, name: str) -> Path:
    """The object file of an installed program, or of this tree's, compiled if need be.

    package: the one it belongs to; name: without suffix. Raises: BuildError.
    """
    source = ROOT / package / "offload" / "bpf" / f"{name}.bpf.c"
    if source.exists():
        return compile(source)
    made = source.with_suffix(".o")
    if not made.exists():
        raise BuildError(f"{made.name} is not there: this package was built without {NEEDED}")
    return made


@cache
def write_constants() -> None:
    """Make the headers of constants, where they are not as they shall be."""
    for header, parts in CONSTANTS.items():
        lines = ["/* Made by common/bpf/build.py of Python's constants. */", "#pragma once"]
        for module, prefix, names in parts:
            values = constants_of(ROOT / module)
            lines += ["", f"/* {module} */"]
            lines += [_in_c(prefix + name, values[name]) for name in names]
        text, path = "\n".join(lines) + "\n", ROOT / header
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            draft = path.with_name(f"{path.name}.{os.getpid()}")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)


def constants_of(module: Path) -> dict[str, Any]:
    """What a module's first level makes of literals and of other such constants."""
    found: dict[str, Any] = {}
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign):
            continue
        try:
            value = eval(ast.unparse(node.value), {"__builtins__": {"range": range}}, found)
        except (NameError, TypeError):  # not of constants alone
            continue
        target = node.targets[0]
        if isinstance(target, ast.Tuple):
            found.update(zip((each.id for each in target.elts if isinstance(each, ast.Name)), value,
                             strict=True))
        elif isinstance(target, ast.Name):
            found[target.id] = value
    return found


def _in_c(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return f"#define {name} {{{', '.join(map(str, value))}}}"
    return f"#define {name} {value}"


def _is_stale(source: Path, output: Path) -> bool:
    made_of = [source, Path(__file__), *source.parent.glob("*.h"),
               *(ROOT / "common" / "bpf" / "include").glob("*.h")]
    made_ns = output.stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > made_ns for path in made_of)


def _include_flags(source: Path) -> list[str]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    return ["-I", str(ROOT), "-I", str(source.parent), "-idirafter", f"/usr/include/{multiarch}"]


def _run(command: list[str], source: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{source.name}: {done.stderr.strip() or done.returncode}")
