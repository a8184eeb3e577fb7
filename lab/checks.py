"""What health checks cost, and what a dead backend does under load.

The cost is that of the greatest configuration, 63 services of 127 backends each, on one host that
answers for all of them; the load is one request a connection, as fast as two threads ask.
"""

import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyroute2 import netns

from lab.node import Process, wait_until
from lab.topology import DSCP, VIP, Lab, Node

KINDS = ("portable", "adopt", "splice")
SERVICES, BACKENDS = 63, 127
_NET = "10.9.0.{}"
_VIPS = "192.168.40.{}"
_PATIENCE_S = 60
_ASKERS = 2
_TIMEOUT_S = 3  # of a request
_TICKS_PER_S = 100
_CHECK = "[service.check]\ninterval = 0.5\ntimeout = 0.25\nrise = 2\nfall = 3\n"
DECLINED = signal.SIGUSR1
# Answers handoffs straight from the wire: no stack, no server. After DECLINED, those for even
# addresses alone.
RESPONDER = """
import signal, socket
from common.wire import tcp
from common.wire.seq import add

declined = []
signal.signal(signal.SIGUSR1, lambda number, frame: declined.append(1))

wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
wire.bind(("eth1", 0x0800))
wire.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
answer = b"HTTP/1.1 200 OK\\r\\nServer: nginx\\r\\nContent-Type: text/plain\\r\\n\\r\\nfine\\r\\n"
while True:
    frame = wire.recv(65536)
    packet = frame[14:]
    if packet[9] == 6 and packet[1]:
        segment = tcp.checked(packet)
        if segment.payload_len and not (declined and packet[19] & 1):
            vip = bytes((192, 168, 40, packet[1] >> 2))
            made = tcp.emit(
                vip + packet[12:16] + segment.dport + segment.sport, segment.ack,
                add(segment.seq, segment.payload_len), tcp.ACK | tcp.PSH, payload=answer)
            wire.send(frame[6:12] + frame[:6] + b"\\x08\\0" + made)
"""


def measure(seconds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Kind of pair → figures. say: for progress."""
    found: dict[str, Any] = {}
    for kind in ("portable", "adopt"):
        say(f"{kind}: {SERVICES * BACKENDS:,} backends are checked")
        found.setdefault(kind, {}).update(_cost(kind, 5 * seconds))
    for kind in KINDS:
        for how in ("server", "host"):
            say(f"{kind}: a {how} dies under load")
            found.setdefault(kind, {})[f"a {how} dies"] = _death(kind, how, seconds)
    return found


def table(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield f"{SERVICES * BACKENDS:,} backends, each checked every 2 s"
    for kind, figures in found.items():
        if "checks/s" in figures:
            yield (f"  {kind:<10} {figures['checks/s']:6,.0f} checks/s: {figures['CPU']:.0%} of a "
                   f"core, {figures['failed/s']:.0f} failed a second")
    yield ""
    yield "a backend of two dies under load, checked every 0.5 s"
    for kind, figures in found.items():
        for how in ("a server dies", "a host dies"):
            of = figures[how]
            yield (f"  {kind:<10} {how:<14} {of['failed']:4} of {of['requests']:,} requests "
                   f"failed, the last one after {of['seconds']:.1f} s")


# --- what it costs ---


def _cost(kind: str, seconds: int) -> dict[str, float]:
    with Lab(backends=1, pair=kind) as lab:
        backend = lab.backends[0]
        lab.balancer.run(["ip", "route", "add", _NET.format("0/24"), "via", backend.address])
        backend.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        responder = backend.popen([sys.executable, "-c", RESPONDER])
        try:
            balancer = lab.start_balancer("--config", str(_all_there_can_be(lab)), defaults=False,
                                          ready=False).wait_for("ready", _PATIENCE_S)
            wait_until(lambda: _checks(balancer, "passed") > SERVICES * BACKENDS, _PATIENCE_S,
                       "each backend has been checked")
            before, started = _state(balancer), time.monotonic()
            time.sleep(seconds)
            after, elapsed = _state(balancer), time.monotonic() - started
        finally:
            responder.kill()
            responder.wait()
    rates = [(new - old) / elapsed for old, new in zip(before, after, strict=True)]
    return {"CPU": rates[0], "checks/s": rates[1], "failed/s": rates[2]}


def _all_there_can_be(lab: Lab) -> Path:
    path = lab.directory / "all.toml"
    backends = "".join(f'[[service.backend]]\nid = {number}\naddress = "{_NET.format(number)}"\n'
                       for number in range(1, BACKENDS + 1))
    path.write_text("max_flows = 1000\n" + "".join(
        f'[[service]]\nvip = "{_VIPS.format(number)}"\nport = 80\ndscp = {number}\n'
        f"[service.check]\n{backends}" for number in range(1, SERVICES + 1)))
    return path


def _state(process: Process) -> tuple[float, float, float]:
    """CPU seconds, checks that were passed and that have failed, so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return ((int(fields[11]) + int(fields[12])) / _TICKS_PER_S, _checks(process, "passed"),
            _checks(process, "failed"))


def _checks(process: Process, result: str) -> float:
    return sum(value for name, value in process.metrics().items()
               if "_checks_total" in name and f'result="{result}"' in name)


# --- what a dead backend does ---


def _death(kind: str, how: str, seconds: int) -> dict[str, float]:
    with Lab(pair=kind) as lab:
        servers = [lab.start_nginx(backend) for backend in lab.backends]
        for backend in lab.backends:
            lab.start_bridge(backend)
        path = lab.directory / "balancer.toml"
        path.write_text(
            f'[[service]]\nvip = "{VIP}"\nport = 80\ndscp = {DSCP}\n{_CHECK}' + "".join(
                f'[[service.backend]]\nid = {each.number}\naddress = "{each.address}"\n'
                for each in lab.backends))
        lab.start_balancer("--config", str(path), defaults=False)
        asked: list[tuple[float, bool]] = []
        stop = threading.Event()
        askers = [threading.Thread(target=_ask, args=(lab.client, number, stop, asked))
                  for number in range(_ASKERS)]
        for asker in askers:
            asker.start()
        time.sleep(1)
        died_s = time.monotonic()
        if how == "server":
            servers[0].stop()
        else:
            lab.backends[0].run(["ip", "link", "set", "eth1", "down"])
        time.sleep(seconds)
        stop.set()
        for asker in askers:
            asker.join()
    failures = [at_s for at_s, failed in asked if failed]
    return {"requests": len(asked), "failed": len(failures),
            "seconds": max(failures, default=died_s) - died_s}


def _ask(
    client: Node, number: int, stop: threading.Event, asked: list[tuple[float, bool]]
) -> None:
    """Ask for one URL after the other. asked: when each request began, and whether it failed."""
    netns.pushns(client.namespace)
    try:
        count = 0
        while not stop.is_set():
            count += 1
            began_s = time.monotonic()
            asked.append((began_s, not _is_answered(f"/{number}/{count}")))
    finally:
        netns.popns()


def _is_answered(path: str) -> bool:
    with socket.socket() as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect((VIP, 80))
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200")
        except OSError:
            return False
