"""What the benchmark reads from wrk, and what it says of its aims."""

import pytest

from lab import bench
from lab.contenders import NAMES

WRK = """\
Running 1s test @ http://192.168.33.10/x
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   345.10us  401.22us   9.62ms   93.08%
  Latency Distribution
     50%  269.00us
     99%    1.43ms
  102315 requests in 1.00s, 14.44MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 5
Requests/sec: 102210.25
"""


def test_wrk_is_read():
    assert bench._latency_ms(WRK, "50%") == pytest.approx(0.269)
    assert bench._latency_ms(WRK, "99%") == pytest.approx(1.43)
    assert bench._number(WRK, r"Requests/sec:\s+([\d.]+)") == 102210.25
    assert bench._failures(WRK) == 15
    assert bench._failures(WRK.partition("  Socket")[0]) == 0


def test_what_wrk_does_not_say_is_an_error():
    with pytest.raises(RuntimeError, match="wrk failed"):
        bench._number("wrk failed", r"(\d+) requests")


def test_aims_are_ratios_of_medians():
    figures = {name: {aim.figure: [1.0, 50.0, 2.0] for aim in bench.AIMS} for name in NAMES}
    figures["fast, adopt"]["requests/s"] = [9.0, 3.9, 4.1]

    lines = list(bench.verdicts(figures))

    met = next(line for line in lines if "requests/s, to haproxy ≥ 2" in line)
    assert (met.split()[0], met.split()[-1]) == ("met", "2.050")
    missed = next(line for line in lines if "bulk Mbit/s, to haproxy ≥ 5" in line)
    assert (missed.split()[0], missed.split()[-1]) == ("missed", "1.000")
