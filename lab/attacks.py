"""Floods beside real traffic: what is left of it, at each contender, in one run.

The attacker is a host of the lab, and shares the machine's processors with all others: how much a
contender loses is to be read beside what a direct connection to nginx loses. Floods are sent by the
kernel (XDP on live frames) from addresses of 10.66.0.0/16.
"""

import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyroute2 import netns

from common.bpf import build
from common.bpf.links import Mode, attach_xdp
from common.bpf.objects import Object, Program, XdpMd
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH, SYN
from lab import contenders
from lab.contenders import Contender
from lab.node import REPOSITORY, Node
from lab.topology import DSCP, Lab

CONTENDERS = ("direct", "haproxy", "fast, adopt", "portable")
ATTACKER = "192.168.33.102"
_FLOOD = REPOSITORY / "lab/bpf/flood.bpf.c"
_NET = "10.66.0.0/16"
_BURST_S = 0.05  # each burst takes the kernel some ms to set up
_MOST = 10_000_000  # frames a second: more than the machine can send
_CONNECTIONS = 2000


class Attack(NamedTuple):
    """rate: packets a second; 0: none. make: the packet's flags, DSCP, payload."""

    name: str
    rate: int
    flags: int = 0
    dscp: int = 0
    payload: bytes = b""


ATTACKS = (
    Attack("none", 0),
    Attack("SYNs, 200,000/s", 200_000, SYN),
    Attack("SYNs, as many as go", _MOST, SYN),
    Attack("ACKs with random cookies", 200_000, ACK),
    Attack("forged handoffs", 200_000, ACK | PSH, DSCP, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    Attack("first payloads that never complete", 0, payload=b"GET /unfinished"),
)


def measure(rounds: int, seconds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Contender → attack → figure → medians over the rounds. say: for progress.

    Raises: BpfError, BuildError.
    """
    found: dict[str, Any] = {name: {} for name in CONTENDERS}
    with Lab(clients=2) as lab, _attacker(lab) as flood:
        contenders.prepare(lab)
        for number in range(rounds):
            for name in CONTENDERS:
                with contenders.running(lab, name) as contender:
                    for attack in ATTACKS:
                        say(f"round {number + 1} of {rounds}: {name}: {attack.name}")
                        figures = found[name].setdefault(attack.name, {})
                        for figure, value in _one(lab, contender, attack, flood, seconds).items():
                            figures.setdefault(figure, []).append(value)
    return {name: {attack: {figure: statistics.median(values)
                            for figure, values in figures.items()}
                   for attack, figures in attacks.items()}
            for name, attacks in found.items()}


def _one(
    lab: Lab, contender: Contender, attack: Attack, flood: Program, seconds: int
) -> dict[str, float]:
    """Requests on kept connections and on new ones, under attack."""
    stop, sent = threading.Event(), [0.0]
    if attack.rate:
        frame = _frame(lab, contender, attack)
        work = threading.Thread(target=_send, args=(lab.client2, flood, frame, attack.rate,
                                                    seconds + 2, stop, sent))
    else:
        work = threading.Thread(target=_leave_open, args=(lab.client2, contender, attack.payload,
                                                          seconds + 2, stop, sent))
    work.start()
    try:
        time.sleep(0.5)
        words = ["wrk", "-t1", "-c16", f"-d{seconds}s", "--timeout", "10s"]
        kept = lab.client.popen([*words, f"{contender.url}/kept"], stdout=-1, text=True)
        new = lab.client.popen([*words, "-H", "Connection: close", f"{contender.url}/new"],
                               stdout=-1, text=True)
        texts = [process.communicate(timeout=seconds + 60)[0] for process in (kept, new)]
    finally:
        stop.set()
        work.join()
    speeds = [float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]) for text in texts]
    failed = sum(map(int, re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)",
                                     "".join(texts))))
    return {"kept": speeds[0], "new": speeds[1], "failed": failed, "attack/s": sent[0]}


# --- the attacker ---


@contextmanager
def _attacker(lab: Lab) -> Iterator[Program]:
    """The flood's program, on a host whose interface can send frames; answers end there."""
    for host in (lab.balancer, *lab.backends):
        host.run(["ip", "route", "add", _NET, "via", ATTACKER])
    with Object(build.compile(_FLOOD)) as program_file:
        program_file.load()
        netns.pushns(lab.switch.namespace)
        try:
            link, _ = attach_xdp(program_file.program("pass"),
                                 socket.if_nametoindex("p-client2"), Mode.NATIVE)
        finally:
            netns.popns()
        yield program_file.program("flood")
        link.close()


def _frame(lab: Lab, contender: Contender, attack: Attack) -> bytes:
    """What is sent, but for the numbers. A handoff goes to the bridge, past the balancer."""
    is_handoff, backend = bool(attack.dscp), lab.backends[0]
    address = contender.address
    if is_handoff and contender.is_ours:
        address = backend.address
    host = lab.balancer if contender.balancing and not is_handoff else backend
    mac = host.run(["cat", "/sys/class/net/eth1/address"]).strip()
    layout = options.emit(Options(1460, True, (1, 0), 7)) if attack.flags & SYN else b""
    ends = (bytes(4) + socket.inet_aton(address) + bytes(2) + contender.port.to_bytes(2))
    return (bytes.fromhex(mac.replace(":", "")) + b"\x02" + bytes(5) + b"\x08\x00"
            + tcp.emit(ends, 0, 0, attack.flags, window=64240, option_octets=layout,
                       payload=attack.payload, tos=attack.dscp << 2))


def _send(
    host: Node, flood: Program, frame: bytes, rate: int, seconds: int, stop: threading.Event,
    sent: list[float],
) -> None:
    """Send at a rate, or as fast as it goes, until stopped. sent: frames a second, at the end."""
    netns.pushns(host.namespace)
    try:
        index = socket.if_nametoindex("eth1")
        burst, count = int(rate * _BURST_S), 0
        start = due = time.monotonic()
        while not stop.is_set() and time.monotonic() < start + seconds:
            flood.run_live(frame, XdpMd(ingress_ifindex=index), repeat=burst)
            count += burst
            due += _BURST_S
            time.sleep(max(0.0, due - time.monotonic()))
        sent[0] = count / (time.monotonic() - start)
    finally:
        netns.popns()


def _leave_open(
    host: Node, contender: Contender, payload: bytes, seconds: int, stop: threading.Event,
    sent: list[float],
) -> None:
    """Real connections, one after the other, whose first payload stays as it is."""
    if not payload:
        return
    netns.pushns(host.namespace)
    try:
        connections: list[socket.socket] = []
        start, count = time.monotonic(), 0
        while not stop.is_set() and time.monotonic() < start + seconds:
            connection = socket.socket()
            connection.settimeout(1)
            try:
                connection.connect((contender.address, contender.port))
                connection.send(payload)
            except OSError:
                connection.close()
                continue
            connections.append(connection)
            count += 1
            if len(connections) > _CONNECTIONS:
                connections.pop(0).close()
        sent[0] = count / (time.monotonic() - start)
        for connection in connections:
            connection.close()
    finally:
        netns.popns()


# --- for people ---


def table(figures: dict[str, Any]) -> Iterator[str]:
    """What is left of each contender's own quiet figure, in percent, and how many failed."""
    heads = "".join(f"{name:>30}" for name in figures)
    yield f"{'left of kept / new connections':<36}{heads}"
    for attack in ATTACKS:
        cells = ""
        for found in figures.values():
            quiet, now = found["none"], found[attack.name]
            left = f"{now['kept'] / quiet['kept']:4.0%} / {now['new'] / quiet['new']:4.0%}"
            cells += f"{f'{left} {_count(now)}':>30}"
        yield f"{attack.name:<36}{cells}"


def _count(found: dict[str, float]) -> str:
    failed = f", {found['failed']:.0f} failed" if found["failed"] else ""
    return f"({found['attack/s'] / 1000:.0f} k/s{failed})"
