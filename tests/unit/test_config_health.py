"""`[service.check]`: what is checked by default, and what each mistake is answered with."""

from pathlib import Path

import pytest

from balancer import config
from balancer.health.settings import Check
from common.settings import ConfigError

SERVICE = """
[[service]]
vip = "192.0.2.10"
port = 80
%s

  [[service.backend]]
  id = 1
  address = "192.0.2.20"
%s
"""


def read(tmp_path: Path, check: str = "", service: str = "") -> Check:
    path = tmp_path / "balancer.toml"
    path.write_text(SERVICE % (service, check))
    (loaded,) = config.load(str(path)).services
    return loaded.check


def test_a_service_without_the_table_is_not_checked(tmp_path: Path) -> None:
    assert read(tmp_path).kind == "none"


@pytest.mark.parametrize("key, kind", [
    ("http.path", "http"), ("http.cookie:id", "http"), ("tls.sni", "tls"), ("source", "none"),
    ("payload:4", "payload"),
])
def test_the_kind_is_by_the_key(tmp_path: Path, key: str, kind: str) -> None:
    needed = 'send = "a"\nexpect = "b"' if kind == "payload" else ""

    check = read(tmp_path, f"[service.check]\n{needed}", f'key = "{key}"')

    assert check.kind == kind


def test_everything_can_be_said(tmp_path: Path) -> None:
    check = read(tmp_path, """
  [service.check]
  kind = "http"
  method = "HEAD"
  path = "/health?x=1"
  host = "example.org"
  status = 204
  expect = "fine"
  interval = 5
  timeout = 0.5
  rise = 4
  fall = 5
  ramp = 30
  on_down = "reset"
  all_down = "reset"
""")

    assert check == Check(
        kind="http", method="HEAD", path="/health?x=1", host="example.org", status=(204, 204),
        expect="fine", interval_ms=5000, timeout_ms=500, rise=4, fall=5, ramp_ms=30_000,
        on_down="reset", all_down="reset")


@pytest.mark.parametrize("check, key, remedy", [
    ('kind = "ping"', "kind", "one of http, tls, payload, none"),
    ('path = "health"', "path", "begins with /"),
    ('path = "/a b"', "path", "without spaces"),
    ('host = "a\\r\\nb"', "host", "without spaces"),
    ("status = 99", "status", "a status or a range"),
    ('status = "400-200"', "status", "a status or a range"),
    ("timeout = 3", "timeout", "interval (2 s) at most"),
    ('kind = "tls"\npath = "/"', "path", "none with kind tls"),
    ('kind = "http"\nsend = "x"', "send", "none with kind http"),
    ('kind = "payload"\nsend = "x"', "expect", "kind payload needs it"),
    (f'kind = "payload"\nexpect = "x"\nsend = "{"x" * 1001}"', "send", "1000 octets at most"),
    ('on_down = "drop"', "on_down", "one of keep, reset"),
    ("interval = 0", "interval", "seconds, from 0.1"),
])
def test_a_mistake_is_refused(tmp_path: Path, check: str, key: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, f"[service.check]\n{check}")

    assert f"service[0].check.{key}" in str(refused.value)
    assert remedy in str(refused.value)
