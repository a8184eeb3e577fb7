"""The picture of the balancer's page in the docs: a minute of real traffic, one server down.

    python -m lab.picture [FILE]      writes it anew (default docs/page.png); needs root
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.browser import Browser
from lab.node import METRICS_PORT, REPOSITORY, Process
from lab.topology import VIP, Lab

USUAL = REPOSITORY / "docs/page.png"
_MINUTE_S = 90
_CONFIG = """\
[[service]]
name = "web"
vip = "{vip}"
port = 80
key = "http.path"
{backends}
  [service.check]
  path = "/"
"""
_BACKEND = """\
  [[service.backend]]
  id = {id}
  address = "{address}"
"""


def main(words: list[str]) -> int:
    """Make it. Returns: the exit code."""
    path = Path(words[0]) if words else USUAL
    with Lab(pair="adopt", backends=3) as lab, Browser(lab.balancer.command([])) as browser:
        servers = _start(lab)
        browser.look(width=1100, height=900)
        browser.go(f"http://127.0.0.1:{METRICS_PORT}/")
        _use(lab, servers[-1])
        browser.wait("document.querySelector('#backends').innerText.includes('down')")
        browser.picture(path)
    print(path)
    return 0


def _start(lab: Lab) -> list[Process]:
    """All of it. Returns: the servers."""
    servers = [lab.start_nginx(backend) for backend in lab.backends]
    for backend in lab.backends:
        lab.start_bridge(backend)
    file = lab.directory / "picture.toml"
    file.write_text(_CONFIG.format(vip=VIP, backends="\n".join(
        _BACKEND.format(id=place, address=backend.address)
        for place, backend in enumerate(lab.backends, start=1))))
    lab.start_balancer("--config", str(file), defaults=False)
    return servers


def _use(lab: Lab, last: Process) -> None:
    """Requests of many paths, now more and now less. last: the server that ends meanwhile."""
    end_s = time.monotonic() + _MINUTE_S

    def ask(name: int) -> None:
        place = 0
        while time.monotonic() < end_s:
            place += 1
            lab.client.run(["curl", "-s", "-o", "/dev/null", f"http://{VIP}/{name}/{place}"],
                           check=False)
            time.sleep(0.02 * (1 + place // 40 % 3))

    with ThreadPoolExecutor(4) as pool:
        for name in range(4):
            pool.submit(ask, name)
        time.sleep(_MINUTE_S * 0.8)
        last.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
