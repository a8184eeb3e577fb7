"""What the daemons say on a host of the lab."""

import re

from traffic import PATIENCE_S

from lab.node import wait_until
from lab.topology import VIP, Lab

PORTABLE = "--engine", "portable"  # programs say nothing


def test_at_debug_decisions_are_said_and_no_library_s_talk(lab: Lab) -> None:
    lab.start_nginx(lab.backend1)
    bridge = lab.start_bridge(lab.backend1, "--log-level", "debug", *PORTABLE)
    balancer = lab.start_balancer("--backend", f"{lab.backend1.address},id=1", "--log-level",
                                  "debug", *PORTABLE, defaults=False)

    lab.client.curl(f"http://{VIP}/")
    for program in (balancer, bridge):
        program.stop()

    assert re.search(rf"DEBUG \S+ > {VIP}:80 S, 0 bytes: send, syn_answered; sent {VIP}:80 > ",
                     balancer.log())
    assert re.search(r"DEBUG .*: send, handoff; sent .* > 192\.168\.33\.20:80", balancer.log())
    assert re.search(r"DEBUG .* bytes: send, replayed; sent ", bridge.log())
    said = (balancer.log() + bridge.log()).lower()
    assert not any(word in said for word in ("pyroute2", "netlink", "asyncio", "recv"))


def test_packets_that_cannot_be_sent_are_said_with_error_and_destination(lab: Lab) -> None:
    balancer = lab.start_balancer("--backend", "10.9.9.9,id=1", *PORTABLE, defaults=False)

    lab.client.run(["curl", "-s", "-m2", f"http://{VIP}/"], check=False)

    wait_until(lambda: "not sent" in balancer.log(), PATIENCE_S, "the failure is said")
    assert "1 packet to 10.9.9.9 was not sent: Network is unreachable (errno 101)" in balancer.log()
    assert balancer.metrics()["l3dsr_balancer_send_failures_total"] >= 1
