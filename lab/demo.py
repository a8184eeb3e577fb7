"""The demo: the real programs on a network of their own, and a check of each thing they promise."""

import hashlib
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lab.node import wait_until
from lab.topology import CLIENT, VIP, Backend, Lab, Node, Process

URLS = (
    "/", "/index.html", "/css/site.css", "/img/logo.png", "/api/users/7?verbose=1",
    "/video/1/part/2", "/search?q=dsr", "/a/rather/long/path/with/many/parts/in/it.html",
)
FILE_OCTETS = 64 << 20
_BALANCER_SHARE_MAX = 0.05
_RETRANSMISSION_S = 0.15  # Linux waits for 0.2 s at least
_ASKED = ("first", "again", "meanwhile", "back")
_HEALTH_S = 10  # for a server to be given up, or taken back
_RUN_OF_PROGRAM = ("python_", "process_", "l3dsr_build_")
_HANDOFFS = 'l3dsr_balancer_packets_total{reason="handoff"}'
_NEWS = re.compile(r"backend \d+ of \S+ \(\S+\) is (?:down|up again|suspect).*")
_REASON = re.compile(r'.*packets_total{reason="(\w+)"}')


@dataclass
class Report:
    """What was seen.

    checks: a sentence and whether it held, with what was seen. programs: how each serves.
    health: what the balancer has said of its backends.
    """

    checks: list[dict[str, object]] = field(default_factory=list)
    programs: dict[str, str] = field(default_factory=dict)
    urls: list[dict[str, str]] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    file: dict[str, object] = field(default_factory=dict)
    octets: dict[str, int] = field(default_factory=dict)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether every check did."""
        return bool(self.checks) and all(check["held"] for check in self.checks)

    def check(self, sentence: str, held: bool, seen: str = "") -> None:
        """Note whether something held."""
        self.checks.append({"check": sentence, "held": bool(held), "seen": seen})


def main(as_json: bool) -> int:
    """Run it. Returns: 0 only if every check held."""
    started = time.monotonic()
    report = Report()
    try:
        with Lab() as lab:
            _run(lab, report)
    except (RuntimeError, TimeoutError) as failure:
        report.check("the lab and its programs run", False, str(failure))
    seconds = time.monotonic() - started
    if as_json:
        print(json.dumps({"held": report.held, "seconds": round(seconds, 1)} | asdict(report),
                         indent=2))
    else:
        _print(report, seconds)
    return 0 if report.held else 1


def _run(lab: Lab, report: Report) -> None:
    hosts = [lab.balancer, *lab.backends]
    before = [_state(host) for host in hosts]
    servers = [lab.start_nginx(backend) for backend in lab.backends]
    bridges = [lab.start_bridge(backend) for backend in lab.backends]
    balancer = lab.start_balancer("--config", str(_write_config(lab)), defaults=False)
    report.check("balancer and bridges are ready", True)
    for process in (balancer, *bridges):
        report.programs[process.name] = process.log().partition(" ready: ")[2].splitlines()[0]
    _ask_urls(lab, report)
    _ask_directly(lab.client, lab.backends[0], report)
    _fetch_file(lab, report)
    _count_connections(balancer, report)
    _lose_a_server(lab, balancer, servers[0], report)
    for process in (balancer, *bridges):
        report.counters[process.name] = _counters(process)
    codes = [process.stop() for process in (balancer, *bridges)]
    report.check("SIGTERM ends the programs with exit code 0", not any(codes), f"{codes}")
    after = [_state(host) for host in hosts]
    report.check("addresses, rules and sysctls of the hosts are as they were", before == after,
                 "" if before == after else f"{before} became {after}")


def _write_config(lab: Lab) -> Path:
    """The balancer's, with health checks."""
    path = lab.directory / "balancer.toml"
    path.write_text("".join([
        f'[[service]]\nvip = "{VIP}"\nport = 80\n',
        "[service.check]\ninterval = 0.5\ntimeout = 0.25\nrise = 2\nfall = 2\n",
        *(f'[[service.backend]]\nid = {backend.number}\naddress = "{backend.address}"\n'
          for backend in lab.backends),
    ]))
    return path


def _lose_a_server(lab: Lab, balancer: Process, server: Process, report: Report) -> None:
    """A server dies and comes back: its URLs move and return, and hardly a request fails."""
    before = {answer["url"]: answer["first"] for answer in report.urls}
    name = server.node.name
    server.stop()
    died_s = time.monotonic()
    failed = _ask_until(lab, lambda answers: set(answers.values()) == set(before.values()) - {name})
    seconds = time.monotonic() - died_s
    moved = _answers(lab)
    report.check("a dead server's URLs are answered by others", None not in moved.values(),
                 f"after {seconds:.1f} s, in which {len(failed)} requests failed")
    report.check("no other URL's request fails, and none moves",
                 {before[url] for url in failed} <= {name} and all(
                     moved[url] == at for url, at in before.items() if at != name))
    lab.start_nginx(lab.node(name))  # type: ignore[arg-type]
    failed = _ask_until(lab, lambda answers: answers == before)
    back = _answers(lab)
    report.check("they return when it does, and no request fails", back == before and not failed)
    for answer in report.urls:
        answer["meanwhile"], answer["back"] = (
            found[answer["url"]] or "–" for found in (moved, back))
    report.health = _NEWS.findall(balancer.log())


def _ask_until(lab: Lab, settled: Callable[[dict[str, str | None]], bool]) -> list[str]:
    """Ask for all URLs again and again. Returns: the URL of each request that failed."""
    failed: list[str] = []
    end_s = time.monotonic() + _HEALTH_S
    while time.monotonic() < end_s:
        answers = _answers(lab)
        failed += [url for url, answer in answers.items() if answer is None]
        if settled(answers):
            break
    return failed


def _answers(lab: Lab) -> dict[str, str | None]:
    """The backend that answers for each URL; None: the request failed."""
    answers: dict[str, str | None] = {}
    for url in URLS:
        try:
            answers[url] = lab.client.curl(f"http://{VIP}{url}", timeout_s=2).split()[0]
        except RuntimeError:
            answers[url] = None
    return answers


def _ask_urls(lab: Lab, report: Report) -> None:
    """Each URL twice; nginx answers with its name, the URI, and the client that it sees."""
    seen_clients, seconds = set(), []
    for url in URLS:
        first, again = (
            lab.client.curl(f"http://{VIP}{url}", "-w", "%{time_total}").split() for _ in range(2)
        )
        seconds += [float(answer[-1]) for answer in (first, again)]
        report.urls.append({"url": url, "first": first[0], "again": again[0]})
        seen_clients |= {answer[2].rpartition(":")[0] for answer in (first, again)}
        if [first[1], again[1]] != [url, url]:
            report.check(f"{url} is answered", False, f"{first} {again}")
    report.check("the same URL gets the same backend",
                 all(answer["first"] == answer["again"] for answer in report.urls))
    used = sorted({answer["first"] for answer in report.urls})
    report.check("every backend gets some of them", len(used) == len(lab.backends), ", ".join(used))
    report.check("nginx sees the client's own address", seen_clients == {CLIENT},
                 ", ".join(sorted(seen_clients)))
    typical_s = statistics.median(seconds)
    report.check("no connection waits for a retransmission", typical_s < _RETRANSMISSION_S,
                 f"{typical_s * 1000:.1f} ms, the median of {len(seconds)}")


def _ask_directly(client: Node, backend: Backend, report: Report) -> None:
    answer = client.curl(f"http://{backend.server}/direct").split()
    report.check("a connection straight to a server is left alone",
                 answer[:2] == [backend.name, "/direct"], " ".join(answer))


def _fetch_file(lab: Lab, report: Report) -> None:
    """A large file: its checksum, and what of it crossed the balancer."""
    path = lab.files / "large"
    path.write_bytes(os.urandom(FILE_OCTETS))
    fetched = lab.directory / "fetched"
    before = _through(lab.balancer), lab.client.octets("rx")
    started = time.monotonic()
    lab.client.curl(f"http://{VIP}/files/large", "-o", str(fetched), timeout_s=120)
    seconds = time.monotonic() - started
    through, served = _through(lab.balancer) - before[0], lab.client.octets("rx") - before[1]
    sums = _sha256(path), _sha256(fetched)
    report.file = {"octets": FILE_OCTETS, "sha256_served": sums[0], "sha256_fetched": sums[1],
                   "seconds": round(seconds, 2)}
    report.octets = {"to_client": served, "into_balancer": through}
    report.check("a large file arrives octet for octet", sums[0] == sums[1],
                 f"{FILE_OCTETS >> 20} MiB in {seconds:.1f} s")
    report.check("replies do not cross the balancer", through < served * _BALANCER_SHARE_MAX,
                 f"{through / served:.1%} of the octets, requests and ACKs")


def _count_connections(balancer: Process, report: Report) -> None:
    """Whether the balancer had them all; what its programs count is collected once a second."""
    expected = 2 * len(URLS) + 1  # the file

    def found() -> int:
        return int(balancer.metrics().get(_HANDOFFS, 0))

    try:
        wait_until(lambda: found() >= expected, 5, "all connections are counted")
    except TimeoutError:
        pass
    report.check("each connection was handed over once", found() == expected,
                 f"{found()} of {expected}")


def _through(balancer: Node) -> int:
    return balancer.octets("rx")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _counters(process: Process) -> dict[str, int]:
    """The program's own counters that are not zero; of histograms the sums."""
    found = {}
    for name, value in process.metrics().items():
        if value and not name.startswith(_RUN_OF_PROGRAM) and "_bucket{" not in name:
            found[name.removeprefix("l3dsr_")] = int(value)
    return found


def _state(host: Node) -> list[str]:
    """What the programs may change on a host."""
    rules = host.run(["iptables-save"], check=False) + host.run(["nft", "list", "ruleset"],
                                                                check=False)
    sysctls = ("net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv4.ip_forward")
    return [
        *(line for line in rules.splitlines() if line.startswith("-A") or "l3dsr" in line.lower()),
        *host.run(["ip", "-br", "-4", "addr"]).splitlines(),
        *host.run(["sysctl", *sysctls]).splitlines(),
    ]


# --- for people ---


def _print(report: Report, seconds: float) -> None:
    _section("programs", list(report.programs.items()))
    _section("which backend answers which URL", [
        tuple(answer.get(column, "") for column in ("url", *_ASKED)) for answer in report.urls
    ], ("URL", "first", "again", "one is dead", "it is back"))
    _section("what the balancer says meanwhile", [(line,) for line in report.health])
    if report.octets:
        _section(f"octets, for a file of {FILE_OCTETS:,}", [
            ("received by the client", f"{report.octets['to_client']:>12,}"),
            ("received by the balancer", f"{report.octets['into_balancer']:>12,}"),
        ])
    _print_counters(report.counters)
    _section("checks", [
        (f"{_mark(check['held'])} {check['check']}", str(check["seen"])) for check in report.checks
    ])
    count = sum(bool(check["held"]) for check in report.checks)
    print(f"{_mark(report.held)} {count} of {len(report.checks)} checks held, in {seconds:.1f} s",
          flush=True)


def _print_counters(counters: dict[str, dict[str, int]]) -> None:
    """What became of packets, a row for each reason and a column for each program."""
    columns = {
        program: {match[1]: found[match[0]] for match in map(_REASON.search, found) if match}
        for program, found in counters.items()
    }
    reasons = dict.fromkeys(reason for found in columns.values() for reason in found)
    widths = {program: max(len(program), 9) for program in columns}
    _section("packets, by what became of them", [
        (reason, *(f"{found.get(reason, 0):>{widths[program]},}"
                   for program, found in columns.items())) for reason in reasons
    ], ("reason", *columns))


def _mark(held: object) -> str:
    return "✓" if held else "✗"


def _section(title: str, rows: list[tuple[str, ...]], head: tuple[str, ...] = ()) -> None:
    if not rows:
        return
    lines = [head, *rows] if head else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(title)
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(("  " + "  ".join(cells)).rstrip())
    print()
