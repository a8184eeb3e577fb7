"""Checks are handoffs: what they find on a real network, and where new and open flows go then."""

import re
import time
from collections.abc import Iterator

import pytest
from traffic import URL, connect, request, one_answer

from lab.node import Process, wait_until
from lab.topology import DSCP, PAIRS, VIP, Lab

KINDS = sorted(PAIRS)
CHECK = """
interval = 0.4
timeout = 0.2
rise = 2
fall = 2
"""
CHECKS = "l3dsr_balancer_checks_total"
PATIENCE_S = 5.0
SETTLED_S = 0.3  # from a state to the tables that follow from it


def balancer(lab: Lab, check: str = "", *flags: str) -> Process:
    backends = "".join(
        f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
        for backend in lab.backends)
    path = lab.directory / "balancer.toml"
    path.write_text(f'[[service]]\nname = "web"\nvip = "{VIP}"\nport = 80\ndscp = {DSCP}\n'
                    f"[service.check]\n{CHECK}{check}\n{backends}")
    return lab.start_balancer("--config", str(path), *flags, defaults=False)


def checks(running: Process, backend: int, result: str = "passed") -> float:
    return running.metrics()[f'{CHECKS}{{backend="{backend}",result="{result}",service="web"}}']


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_server_gets_no_new_flows_until_it_is_back(kind: str) -> None:
    with Lab(pair=kind) as lab:
        servers = [lab.start_nginx(backend) for backend in lab.backends]
        for backend in lab.backends:
            lab.start_bridge(backend)
        running = balancer(lab)
        wait_until(lambda: min(checks(running, 1), checks(running, 2)) > 2, PATIENCE_S, "checked")
        urls = [f"/{number}" for number in range(12)]
        before = answers(lab, urls)

        servers[0].stop()
        running.wait_for("backend 1 of web .* is down: it refuses the connection", PATIENCE_S)
        time.sleep(SETTLED_S)
        meanwhile = answers(lab, urls)
        lab.start_nginx(lab.backend1)
        running.wait_for("backend 1 of web .* is up again", PATIENCE_S)
        wait_until(lambda: answers(lab, urls) == before, PATIENCE_S, "all is as before")

        assert set(before.values()) == {"backend1", "backend2"}
        assert set(meanwhile.values()) == {"backend2"}
        assert checks(running, 2, "failed") == 0


def answers(lab: Lab, urls: list[str]) -> dict[str, str]:
    return {url: lab.client.curl(URL + url).split()[0] for url in urls}
