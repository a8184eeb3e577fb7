"""Measure the pair beside no balancer, HAProxy and nginx: one network, one run, alternating.

Ratios are what counts; absolute figures depend on the machine and on what else it does.
With --packets, measure the pure data paths instead: nanoseconds for a packet, octets for a flow.
"""

import argparse
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab import packets
from lab.topology import VIP, Lab, Process, server_address

PROXY_PORT = {"haproxy": 8081, "nginx": 8082}
_BULK_LEN = 128 << 20
_HAPROXY = """\
global
  maxconn 4000
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind 0.0.0.0:{port}
  default_backend caches
backend caches
  balance uri
  hash-type consistent
  http-reuse safe
  server one {one}:80
  server two {two}:80
"""
_NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/bench-nginx.pid;
error_log {directory}/bench-nginx.error;
events {{ worker_connections 16384; }}
http {{
  access_log off;
  proxy_temp_path {directory}/bench-proxy;
  client_body_temp_path {directory}/bench-body;
  fastcgi_temp_path {directory}/bench-fastcgi;
  uwsgi_temp_path {directory}/bench-uwsgi;
  scgi_temp_path {directory}/bench-scgi;
  proxy_buffering off;
  upstream caches {{ hash $uri consistent; server {one}:80; server {two}:80; keepalive 64; }}
  server {{
    listen {port} backlog=8192;
    location / {{
      proxy_pass http://caches;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark, print a table, and write the figures as JSON. Returns: 0."""
    parser = argparse.ArgumentParser(prog="lab/run bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of every measurement (default 3)")
    parser.add_argument("--seconds", type=int, default=4, help="of each load (default 4)")
    parser.add_argument("--output", default="bench.json", help="JSON file (default bench.json)")
    parser.add_argument("--packets", action="store_true",
                        help="the data paths alone, without traffic (about two minutes)")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    options = parser.parse_args(arguments)
    if options.packets:
        figures: dict[str, Any] = packets.measure(options.rounds, _say)
    else:
        with Lab() as lab:
            figures = _measure(lab, options.rounds, options.seconds)
    text = json.dumps(figures, indent=1) + "\n"
    Path(options.output).write_text(text)
    if options.json:
        print(text, end="")
    else:
        (packets.print_table if options.packets else _print_table)(figures)
    return 0


def _say(progress: str) -> None:
    print(f"bench: {progress}", file=sys.stderr, flush=True)


def _measure(lab: Lab, rounds: int, seconds: int) -> dict[str, dict[str, list[float]]]:
    ours, bridges = lab.start_all()
    (lab.files / "bulk").write_bytes(os.urandom(1 << 20) * (_BULK_LEN >> 20))
    ports = {"one": server_address(1), "two": server_address(2), "directory": lab.directory}
    processes: dict[str, list[Process]] = {"direct": [], "ours": [ours, *bridges]}
    for name, template, command in (("haproxy", _HAPROXY, ["haproxy", "-db", "-f"]),
                                    ("nginx", _NGINX, ["nginx", "-c"])):
        path = lab.directory / f"bench-{name}.conf"
        path.write_text(template.format(port=PROXY_PORT[name], **ports))
        process = lab.balancer.start(name, [*command, str(path)])
        process.wait_for_listener("0.0.0.0", PROXY_PORT[name])
        processes[name] = [process]
    urls = {"direct": f"http://{server_address(1)}", "ours": f"http://{VIP}"}
    urls |= {name: f"http://192.168.33.11:{port}" for name, port in PROXY_PORT.items()}
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in urls}
    for number in range(rounds):
        for name, url in urls.items():
            _say(f"round {number + 1} of {rounds}: {name}")
            found = _measure_one(lab, url, seconds, processes[name][:1])
            for figure, value in found.items():
                figures[name].setdefault(figure, []).append(value)
    return figures


def _measure_one(lab: Lab, url: str, seconds: int, balancing: list[Process]) -> dict[str, float]:
    found: dict[str, float] = {}
    load = ["wrk", "-t1", "-c32", f"-d{seconds}s", "--latency"]
    cpu_s = _growth(lambda: _cpu_s(balancing))
    kept = lab.client.run([*load, f"{url}/x"])
    found["requests/s"] = _number(kept, r"Requests/sec:\s+([\d.]+)")
    found["balancer CPU s per 1000 requests"] = cpu_s() * 1000 / _requests(kept)
    found["p50 ms"], found["p99 ms"] = (_latency_ms(kept, share) for share in ("50%", "99%"))
    cpu_s = _growth(lambda: _cpu_s(balancing))
    closed = lab.client.run([*load, "-H", "Connection: close", f"{url}/x"])
    found["connections/s"] = _number(closed, r"Requests/sec:\s+([\d.]+)")
    found["balancer CPU s per 1000 connections"] = cpu_s() * 1000 / _requests(closed)
    crossed, cpu_s = _growth(lambda: lab.balancer.octets("rx")), _growth(lambda: _cpu_s(balancing))
    speed = lab.client.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{speed_download}",
                            f"{url}/files/bulk"])
    found["bulk Mbit/s"] = float(speed) * 8 / 1e6
    found["octets crossing per octet served"] = crossed() / _BULK_LEN
    found["balancer CPU s per GB"] = cpu_s() * 1e9 / _BULK_LEN
    return found


def _growth(read: Callable[[], float]) -> Callable[[], float]:
    before = read()
    return lambda: read() - before


def _cpu_s(processes: list[Process]) -> float:
    """CPU seconds of processes and their children (nginx's workers)."""
    total = 0
    for process in processes:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *children):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def _number(text: str, pattern: str) -> float:
    return float(re.search(pattern, text)[1])


def _requests(text: str) -> float:
    return _number(text, r"(\d+) requests in")


def _latency_ms(text: str, share: str) -> float:
    value, unit = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", text).groups()
    return float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def _print_table(figures: dict[str, dict[str, list[float]]]) -> None:
    """Medians, in brackets the spread; the last column is ours to HAProxy's."""
    print(f"\n{'median (least to greatest)':<34}" + "".join(f"{name:>32}" for name in figures)
          + f"{'ours/haproxy':>14}")
    for figure in figures["ours"]:
        cells, medians = "", {}
        for name, values in figures.items():
            found = values[figure]
            medians[name] = statistics.median(found)
            cells += f"{f'{medians[name]:.4g} ({min(found):.4g} to {max(found):.4g})':>32}"
        ratio = medians["ours"] / medians["haproxy"] if medians["haproxy"] else float("nan")
        print(f"{figure:<34}{cells}{ratio:>14.3f}")
