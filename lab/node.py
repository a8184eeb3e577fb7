"""A host of the lab, which is a network namespace, and the programs that run in it."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
READY_S = 20
# All bounds of waiting are so many times as long, where a processor is emulated.
PATIENCE = float(os.environ.get("L3DSR_PATIENCE", "1"))
_NETNS = Path("/run/netns")


def run(command: Sequence[str], *, check: bool = True, timeout_s: float | None = None,
        stdin: str | None = None) -> str:
    """Run a command and return what it prints on stdout.

    check:   a failure raises.
    Raises: RuntimeError with what it complains of; subprocess.TimeoutExpired.
    """
    done = subprocess.run(
        list(command), capture_output=True, text=True, check=False, input=stdin,
        timeout=None if timeout_s is None else PATIENCE * timeout_s,
        stdin=subprocess.DEVNULL if stdin is None else None, cwd=REPOSITORY,
    )
    if check and done.returncode:
        complaint = done.stderr.strip() or done.stdout.strip()
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {complaint}")
    return done.stdout


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition. Raises: TimeoutError naming `what`."""
    deadline = time.monotonic() + PATIENCE * timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)


class Process:
    """A program in a node, with its output in a file. Stopped by its own process id."""

    def __init__(self, name: str, node: "Node", command: Sequence[str], output: Path) -> None:
        self.name = f"{name} on {node.name}"
        self.node = node
        self.output = output
        with output.open("wb") as file:
            self.popen = subprocess.Popen(
                node.command(command), stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True, cwd=REPOSITORY,
            )

    @property
    def pid(self) -> int:
        """The process id; `ip netns exec` becomes the program, so it is the program's."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def log(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace")

    def wait_for(self, pattern: str, timeout_s: float = READY_S) -> "Process":
        """Wait until it prints `pattern`. Raises: RuntimeError with its output if it does not."""
        def settled() -> bool:
            return bool(re.search(pattern, self.log())) or not self.running

        try:
            wait_until(settled, timeout_s, pattern)
        except TimeoutError:
            pass
        if not re.search(pattern, self.log()):
            state = "runs" if self.running else f"ended with exit code {self.popen.returncode}"
            raise RuntimeError(
                f"{self.name} did not print {pattern!r} within {timeout_s:g} s, and {state}:\n"
                + self.log()
            )
        return self

    def wait_for_listener(self, address: str, port: int, timeout_s: float = READY_S) -> "Process":
        """Wait until something listens there. Raises: RuntimeError with the program's output."""
        def listens() -> bool:
            if not self.running:
                raise RuntimeError(f"{self.name} ended:\n{self.log()}")
            sockets = self.node.run(["ss", "-Hltn", f"src {address} and sport = :{port}"])
            return bool(sockets.strip())

        wait_until(listens, timeout_s, f"{self.name} listens on {address}:{port}")
        return self

    def metrics(self, port: int | None = None) -> dict[str, float]:
        """What it tells Prometheus: name with labels to value. port: default METRICS_PORT."""
        return self.node.metrics(port or METRICS_PORT)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20) -> int:
        """Send a signal and wait. Returns: the exit code (negative for a signal)."""
        if self.running:
            self.popen.send_signal(number)
            try:
                self.popen.wait(PATIENCE * timeout_s)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
                raise
        return self.popen.returncode

    def kill(self) -> int:
        """SIGKILL. Returns: -9, unless it had ended before."""
        return self.stop(signal.SIGKILL)


METRICS_PORT = 9101


class Node:
    """A host of the lab: a network namespace with one interface, eth1."""

    def __init__(self, name: str, namespace: str, directory: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.processes: list[Process] = []
        self._directory = directory

    def command(self, words: Sequence[str]) -> list[str]:
        """A command line that runs in this node."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def run(self, command: Sequence[str], *, check: bool = True, timeout_s: float | None = 60,
            stdin: str | None = None) -> str:
        """Run a command here and return what it prints. Raises: as `run`."""
        return run(self.command(command), check=check, timeout_s=timeout_s, stdin=stdin)

    def popen(self, command: Sequence[str], **options: object) -> subprocess.Popen:
        """Start a command here; the lab ends it. options: of subprocess.Popen."""
        return subprocess.Popen(  # type: ignore[call-overload]
            self.command(command), **{"cwd": REPOSITORY, "start_new_session": True} | options
        )

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start a program here, with its output in a file; the lab stops it at the end."""
        output = self._directory / f"{self.name}-{name}-{len(self.processes)}.log"
        process = Process(name, self, command, output)
        self.processes.append(process)
        return process

    def curl(self, url: str, *flags: str, timeout_s: float = 30) -> str:
        """Fetch a URL with curl. Raises: RuntimeError with curl's complaint."""
        return self.run(["curl", "-sS", "--max-time", f"{PATIENCE * timeout_s:g}", *flags, url],
                        timeout_s=timeout_s + 5)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All programs here stand still within; the kernel goes on."""
        pids = _pids(self.namespace)
        _send_signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _send_signal(pids, signal.SIGCONT)

    def octets(self, direction: str, interface: str = "eth1") -> int:
        """Octets that an interface has sent (`tx`) or received (`rx`)."""
        found = json.loads(self.run(["ip", "-j", "-s", "link", "show", interface]))
        return found[0]["stats64"][direction]["bytes"]

    def metrics(self, port: int = METRICS_PORT) -> dict[str, float]:
        """What a program here tells Prometheus: name with labels to value."""
        text = self.curl(f"http://127.0.0.1:{port}/metrics", timeout_s=10)
        lines = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    @property
    def inode(self) -> int:
        """The namespace's number."""
        return (_NETNS / self.namespace).stat().st_ino


def namespaces(prefix: str) -> list[str]:
    """The network namespaces whose names begin with `prefix`-."""
    names = os.listdir(_NETNS) if _NETNS.is_dir() else []
    return sorted(name for name in names if name.startswith(f"{prefix}-"))


def end_all(namespace: str, timeout_s: float = 5) -> None:
    """End every process of a namespace: SIGTERM, and SIGKILL for those that stay."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _send_signal(_pids(namespace), number)
        try:
            wait_until(lambda: not _pids(namespace), timeout_s, "its processes end")
        except TimeoutError:
            continue
        return


def _pids(namespace: str) -> list[int]:
    """The processes of a namespace that still run (zombies have no namespace)."""
    return [int(pid) for pid in run(["ip", "netns", "pids", namespace], check=False).split()]


def _send_signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
