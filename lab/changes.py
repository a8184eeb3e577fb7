"""What clients notice while all tables are made anew: the longest gap in traffic.

62 services of 100 backends each, for which one host answers, and one of a real server, whose
traffic is watched. The host falls silent for every other backend, so all shares change.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab.checks import DECLINED, RESPONDER
from lab.node import Process, wait_until
from lab.topology import DSCP, VIP, Lab

KINDS = ("portable", "adopt")
SERVICES, BACKENDS = 62, 100
AIM_MS = 5
_NET = "10.9.0.{}"
_VIPS = "192.168.40.{}"
_PATIENCE_S = 90
_UP = "l3dsr_balancer_backend_up{"
# On a kept connection, and on a new one each time: how long each answer took at most.
_ASKER = """
import json, socket, sys, time
vip, kind, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
request = b"GET /%d HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
connection, count, longest, end_s = None, 0, 0.0, time.monotonic() + seconds
while (began_s := time.monotonic()) < end_s:
    if connection is None:
        connection = socket.create_connection((vip, 80), 5)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if kind == "kept":
            began_s = time.monotonic()
    connection.sendall(request % count)
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    longest = max(longest, time.monotonic() - began_s)
    count += 1
    if kind == "new":
        connection.close()
        connection = None
    time.sleep(0.001)
print(json.dumps({"requests": count, "longest_ms": longest * 1000}))
"""


def measure(seconds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Kind of pair → figures. say: for progress."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        say(f"{kind}: the tables of {SERVICES} services change")
        found[kind] = _changes(kind, 3 * seconds)
    return found


def table(found: dict[str, Any]) -> Iterator[str]:
    """For people."""
    yield (f"the tables of {SERVICES} services of {BACKENDS} backends change: the longest that a "
           f"request took, in ms (aim: {AIM_MS} more than at rest)")
    for kind, figures in found.items():
        cells = "   ".join(
            f"{how} connection: {figures[how]['at rest']:.1f} at rest, "
            f"{figures[how]['meanwhile']:.1f} meanwhile" for how in ("kept", "new"))
        yield f"  {kind:<10} {cells}   ({figures['changes']:,.0f} backends changed)"


def _changes(kind: str, seconds: int) -> dict[str, Any]:
    with Lab(pair=kind) as lab:
        host, real = lab.backends
        lab.start_nginx(real)
        lab.start_bridge(real)
        lab.balancer.run(["ip", "route", "add", _NET.format("0/24"), "via", host.address])
        host.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        path = _configuration(lab, real.address)
        responder = host.popen([sys.executable, "-c", RESPONDER])
        try:
            balancer = lab.start_balancer("--config", str(path), defaults=False, ready=False)
            balancer.wait_for("ready", _PATIENCE_S)
            wait_until(lambda: _checked(balancer) >= SERVICES * BACKENDS, _PATIENCE_S, "checked")
            wait_until(lambda: _up(balancer) >= SERVICES * BACKENDS, _PATIENCE_S, "all are up")
            rest = _ask(lab, seconds)
            before = _up(balancer)
            responder.send_signal(DECLINED)
            meanwhile = _ask(lab, seconds)
            changes = before - _up(balancer)
        finally:
            responder.kill()
            responder.wait()
    return {"changes": changes} | {
        how: {"at rest": rest[how], "meanwhile": meanwhile[how]} for how in ("kept", "new")}


def _configuration(lab: Lab, address: str) -> Path:
    path = lab.directory / "changes.toml"
    backends = "".join(f'[[service.backend]]\nid = {number}\naddress = "{_NET.format(number)}"\n'
                       for number in range(1, BACKENDS + 1))
    check = "[service.check]\ninterval = 4\ntimeout = 1\nrise = 1\nfall = 1\n"
    path.write_text("max_flows = 10000\n" + "".join(
        f'[[service]]\nvip = "{_VIPS.format(number)}"\nport = 80\ndscp = {number}\n'
        f"{check}{backends}"
        for number in range(1, SERVICES + 2) if number != DSCP) + (
            f'[[service]]\nvip = "{VIP}"\nport = 80\ndscp = {DSCP}\n'
            f'[[service.backend]]\nid = 1\naddress = "{address}"\n'))
    return path


def _ask(lab: Lab, seconds: int) -> dict[str, float]:
    """The longest that an answer took, in ms, on a kept connection and on new ones."""
    askers = {how: lab.client.popen([sys.executable, "-c", _ASKER, VIP, how, str(seconds)],
                                    stdout=-1) for how in ("kept", "new")}
    time.sleep(seconds)
    return {how: json.loads(asker.communicate(timeout=_PATIENCE_S)[0])["longest_ms"]
            for how, asker in askers.items()}


def _checked(balancer: Process) -> float:
    return sum(value for name, value in balancer.metrics().items() if "_checks_total{" in name)


def _up(balancer: Process) -> float:
    return sum(value for name, value in balancer.metrics().items() if name.startswith(_UP))
