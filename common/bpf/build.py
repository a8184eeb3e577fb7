"""Compile eBPF programs: `compile(source)` gives the object file, fresh.

Also run by the package's build (setup.py), so it needs nothing but the standard library.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("balancer", "packetbridge")
NEEDED = "clang, llvm, libbpf-dev and linux-libc-dev"
# v3: 32-bit registers and jumps, which every kernel since 5.1 verifies. Strict aliasing: clang 14
# moved a read of a header around the write of its `tos`.
FLAGS = ("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-fno-strict-aliasing", "-Wall")


class BuildError(Exception):
    """A program cannot be compiled; str() is what the compiler says, or that there is none."""


def compile(source: Path, output: Path | None = None) -> Path:
    """The object file of a C source, compiled if it is missing or older than what it is made of.

    output: default beside it, `x.bpf.c` → `x.bpf.o`. Includes are looked for from the directory
    that has the packages (`#include "common/bpf/include/x.h"`) and beside the source.
    Raises: BuildError.
    """
    output = output or source.with_suffix(".o")
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
