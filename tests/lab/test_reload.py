"""The configuration changes while packets flow: nothing that goes on notices it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from traffic import ALONE, PATIENCE_S, connect, one_answer, request

from lab.node import wait_until
from lab.topology import VIP, Lab, program

DSCPS = {80: 3, 81: 7, 8080: 11}
OTHER_VIP = "192.168.33.11"
KINDS = ["portable", "adopt", "splice"]


class Running:
    """A balancer whose file is rewritten."""

    def __init__(self, lab: Lab, text: str) -> None:
        self.lab = lab
        self.path = lab.directory / "balancer.toml"
        self.path.write_text(text)
        self.process = lab.start_balancer("--config", str(self.path), defaults=False)

    def reload(self, text: str | None = None) -> str:
        """Rewrite the file and have it taken. Returns: what has changed."""
        if text is not None:
            self.path.write_text(text)
        return self.lab.balancer.run([*program("balancer"), "reload"])

    def metric(self, name: str) -> float:
        return self.process.metrics()[f"l3dsr_balancer_{name}"]


def service(lab: Lab, port: int, ids: list[int], more: str = "", vip: str = VIP, **weights: int
            ) -> str:
    backends = "".join(
        f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
        f'weight = {weights.get(f"w{backend.number}", 1)}\n'
        for backend in lab.backends if backend.number in ids)
    return (f'[[service]]\nvip = "{vip}"\nport = {port}\ndscp = {DSCPS[port]}\n{more}\n{backends}')


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Servers and bridges for all services."""
    with Lab(pair=request.param) as lab:
        for backend in lab.backends:
            lab.start_nginx(backend)
            path = lab.directory / f"{backend.name}.toml"
            path.write_text("".join(
                f'[[service]]\nvip = "{OTHER_VIP if port == 8080 else VIP}:{port}"\n'
                f'dscp = {dscp}\nserver = "{backend.server}:80"\n'
                for port, dscp in DSCPS.items()))
            lab.start_bridge(backend, "--config", str(path), defaults=False)
        yield lab


@contextmanager
def requests(lab: Lab, port: int = 80, vip: str = VIP) -> Iterator[Callable[[], int]]:
    """Requests, one after the other, each of which has to be served. Yields: how many were."""
    done, count, faults = threading.Event(), [0], []

    def ask() -> None:
        while not done.is_set():
            try:
                for _ in range(5):
                    lab.client.run(["curl", "-sS", "--fail", "--max-time", "20", *ALONE, *[
                        f"http://{vip}:{port}/{number}" for number in range(20)]])
                    count[0] += 20
            except RuntimeError as error:
                faults.append(str(error))
                return

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: count[0]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not faults, faults


def answerers(lab: Lab, port: int = 80, vip: str = VIP) -> set[str]:
    urls = [f"http://{vip}:{port}/{number}" for number in range(20)]
    lines = lab.client.run(["curl", "-sS", "--fail", *ALONE, *urls]).splitlines()
    return {line.split()[0] for line in lines}


def test_backends_weights_and_schedulers_change_under_load(served: Lab) -> None:
    lab = served
    running = Running(lab, service(lab, 80, [1]))
    assert answerers(lab) == {"backend1"}

    with requests(lab) as count:
        said = running.reload(service(lab, 80, [1, 2]))
        assert f"service {VIP}:80, backend 2 ({lab.backend2.address}): is added" in said
        assert answerers(lab) == {"backend1", "backend2"}
        kept = connect(lab.client)
        kept.sendall(request("/kept"))
        one_answer(kept)
        for scheduler in ("rendezvous", "least-flows", "round-robin", "random", "maglev"):
            assert f'→ "{scheduler}"' in running.reload(
                service(lab, 80, [1, 2], f'scheduler = "{scheduler}"'
                        if scheduler != "maglev" else ""))
        assert "weight: 1 → 0" in running.reload(service(lab, 80, [1, 2], w1=0))
        assert answerers(lab) == {"backend2"}
        running.reload(service(lab, 80, [2], 'key = "http.target"'))
        assert answerers(lab) == {"backend2"}
        kept.sendall(request("/again"))  # wherever it was, it goes on
        one_answer(kept)
        before = count()
        wait_until(lambda: count() > before + 200, PATIENCE_S, "all goes on")

    kept.close()
    assert running.metric('reloads_total{result="taken"}') == 8
    assert running.process.stop() == 0
