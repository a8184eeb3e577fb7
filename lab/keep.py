"""A lab that stays up between commands: `up`, `shell` and `down`."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lab import topology
from lab.node import namespaces
from lab.topology import VIP, Lab

PREFIX = "l3dsr-up"
DIRECTORY = Path("/run/l3dsr-lab")

_HINT = f"""\
The lab is up: client .1, balancer .11 with VIP {VIP}, backend1 .20/.30, backend2 .21/.31.

  sudo lab/run shell client curl -s http://{VIP}/hello     a request through the pair
  sudo lab/run shell balancer curl -s 127.0.0.1:9101/metrics   the balancer's counters
  sudo lab/run shell backend1                              a shell on a host
  sudo lab/run down                                        take it down

Logs and configuration: {DIRECTORY}"""


def up() -> int:
    """Build it, start everything, and leave it."""
    if namespaces(PREFIX):
        print("lab: it is up already; `sudo lab/run down` takes it down", file=sys.stderr)
        return 1
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    with Lab(DIRECTORY, prefix=PREFIX, keep=True) as lab:
        lab.start_all()
    print(_HINT)
    return 0


def down() -> int:
    """Take it down, and what labs left behind whose process was killed."""
    found = namespaces(PREFIX)
    topology.remove(PREFIX)
    topology.sweep()
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    print("lab: it is down" if found else "lab: there was none")
    return 0


def shell(name: str, command: Sequence[str]) -> int:
    """Become a shell, or a command, on a node. Returns: 1 if there is no such node."""
    names = [name.removeprefix(f"{PREFIX}-") for name in namespaces(PREFIX)]
    if name not in names:
        there = f"its nodes are {', '.join(names)}" if names else "start it: sudo lab/run up"
        print(f"lab: there is no node {name!r}; {there}", file=sys.stderr)
        return 1
    if not command:
        os.environ["PS1"] = f"[{name}] \\w \\$ "
    words = ["ip", "netns", "exec", f"{PREFIX}-{name}", *(command or ["bash", "--norc"])]
    os.execvp(words[0], words)
