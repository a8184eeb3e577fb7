"""What the benchmark reads from wrk, and what it says of its aims."""

import json
from pathlib import Path

import pytest

from lab import bench, changes
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


def test_a_contender_without_a_figure_has_a_dash_in_its_place():
    figures = {"direct": {"TLS hellos/s": [10.0, 12.0, 14.0]}, "nginx": {}}

    assert list(bench.table(figures))[1].split() == ["TLS", "hellos/s", "12", "±", "17%", "–"]
    assert list(bench.verdicts(dict.fromkeys(NAMES, figures["direct"]))) == ["aims"]


def test_a_run_is_compared_with_an_earlier_one():
    before = {"direct": {"requests/s": [100.0, 900.0, 200.0], "gone": [1.0]}, "ns": 2000.0, "no": 0}
    now = {"direct": {"requests/s": [300.0, 100.0, 800.0]}, "ns": 1000.0, "no": 3, "new": 7.0}

    lines = [line.rsplit(maxsplit=3) for line in bench.comparison(before, now)]

    assert lines[1:] == [
        ["direct: requests/s", "200", "300", "1.500"],
        ["direct: gone", "1", "–", "–"],
        ["ns", "2,000", "1,000", "0.500"],
        ["no", "0", "3", "–"],
        ["new", "–", "7", "–"],
    ]


def test_the_comparison_is_printed_after_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "before.json"
    earlier.write_text('{"SYN": 80}')
    monkeypatch.setattr(bench, "_run", lambda options: ({"SYN": 60}, ["table"]))

    bench.main(["--packets", "--against", str(earlier), "--output", str(tmp_path / "now.json")])

    assert capsys.readouterr().out.split() == [
        "table", "beside", "the", "earlier", "run", "then", "now", "ratio",
        "SYN", "80", "60", "0.750"]
    assert json.loads((tmp_path / "now.json").read_text()) == {"SYN": 60}


def test_changes_show_requests_at_rest_beside_those_meanwhile() -> None:
    noted = {"at rest": 1.0, "meanwhile": 4.25}

    head, line = changes.table({"adopt": {"changes": 3100.0, "kept": noted, "new": noted}})

    assert "62 services of 100 backends" in head
    assert line == ("  adopt      kept connection: 1.0 at rest, 4.2 meanwhile   "
                    "new connection: 1.0 at rest, 4.2 meanwhile   (3,100 backends changed)")
