"""What another configuration would change, in words; and a configuration as TOML."""

import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from balancer import config as balancer_config
from balancer.plan import plan_of
from common.settings import shared
from common.settings.emit import emit
from common.settings.schema import settings_of
from common.settings.table import Table
from lab import reference
from packetbridge import config as bridge_config
from packetbridge.plan import plan_of as bridge_plan_of

WEB = """
interface = "eth0"

[[service]]
name = "web"
vip = "192.0.2.10"
port = 80
backend = [{id = 1, address = "192.0.2.20"}, {id = 2, address = "192.0.2.21"}]
"""
TLS = """
[[service]]
name = "tls"
vip = "192.0.2.10"
port = 443
dscp = 7
key = "tls.sni"
backend = [{id = 1, address = "192.0.2.20"}]
"""
BRIDGE = """
interface = "eth0"
address = "192.0.2.20"

[[service]]
name = "web"
vip = "192.0.2.10:80"
server = "192.0.2.30:8080"
"""
CHECKED = """
  [service.check]
  kind = "payload"
  send = "a \\"quoted\\" \\u0001 ü\\r\\n"
  expect = "\\u007f"
  interval = 0.25
  timeout = 0.2
  [service.hold]
  time = 12.345
"""


def balancer(text: str) -> balancer_config.Config:
    return balancer_config.read(Table("x.toml", tomllib.loads(text)))


def bridge(text: str) -> bridge_config.Config:
    return bridge_config.read(Table("x.toml", tomllib.loads(text)))


@pytest.mark.parametrize("old, new, lines", [
    ("id = 2, address", "id = 2, weight = 3, address",
     ["service web, backend 2: weight: 1 → 3"]),
    (', {id = 2, address = "192.0.2.21"}', "",
     ["service web, backend 2 (192.0.2.21) is removed; its flows go on for 300 s at most"]),
    ("id = 2", "id = 3",
     ["service web, backend 3 (192.0.2.21) is added, weight 1",
      "service web, backend 2 (192.0.2.21) is removed; its flows go on for 300 s at most"]),
    ("port = 80", "port = 81",
     ["service web is added, with backend 1 (192.0.2.20), backend 2 (192.0.2.21)",
      "service web is removed; its flows go on for 300 s at most"]),
    ("port = 80", 'port = 80\nscheduler = "rendezvous"\nkey = "http.host"\nmss = 1400',
     ['service web: key: "http.path" → "http.host"',
      'service web: scheduler: "maglev" → "rendezvous"', "service web: mss: 1460 → 1400"]),
    ("port = 80", 'port = 80\ncheck = {interval = 3}',
     ['service web: check.kind: "none" → "http"', "service web: check.interval: 2 → 3"]),
    ('"eth0"', '"eth0"\ntakeover_rate = 5\ndrain_timeout = 0\nsecret_file = "/x"\n'
     "timeouts = {idle = 60}",
     ['secret_file: "/etc/l3dsr/secret" → "/x"', "drain_timeout: 300 → 0",
      "takeover_rate: 100000 → 5", "timeouts.idle: 900 → 60"]),
    ('"eth0"', '"eth1"\nmax_flows = 5',
     ['interface: "eth0" → "eth1" (takes a restart)',
      "max_flows: 1000000 → 5 (takes a restart)"]),
    ("WEB", "WEB", []),
])
def test_each_change_has_its_line(old: str, new: str, lines: list[str]) -> None:
    plan = plan_of(balancer(WEB), balancer(WEB.replace(old, new)))

    assert list(map(str, sorted(plan))) == sorted(lines)


def test_services_come_and_go_whatever_their_order() -> None:
    assert plan_of(balancer(WEB), balancer(WEB + TLS)).lines == (
        "service tls is added, with backend 1 (192.0.2.20)",)
    assert not plan_of(balancer(WEB + TLS), balancer('interface = "eth0"' + TLS + WEB.replace(
        'interface = "eth0"', "")))


@pytest.mark.parametrize("old, new, line", [
    ("192.0.2.30:8080", "192.0.2.30:8081",
     'service web: server: "192.0.2.30:8080" → "192.0.2.30:8081"'),
    ("10:80", "10:81", "service web is added, DSCP 3, server 192.0.2.30:8080"),
    ('"192.0.2.20"', '"192.0.2.22"', 'address: "192.0.2.20" → "192.0.2.22" (takes a restart)'),
])
def test_a_bridge_s_changes_have_theirs(old: str, new: str, line: str) -> None:
    assert line in bridge_plan_of(bridge(BRIDGE), bridge(BRIDGE.replace(old, new))).lines


@pytest.mark.parametrize("read, text", [
    (balancer, WEB + TLS), (balancer, WEB + CHECKED), (bridge, BRIDGE),
    (balancer, 'metrics = "127.0.0.1:9101"\nlifetime = "1h30m"\nwatch = true' + WEB
     + "hash_balance_factor = 125\ncheck = {kind = \"none\", interval = 3}\n"),
    (bridge, 'accept_version_1 = true\nmark = 0x77\ntimeouts = {idle = 123456.789}' + BRIDGE),
])
def test_what_is_emitted_is_read_as_the_same(read: Callable[[str], Any], text: str) -> None:
    configured = read(text)

    assert read(emit(configured)) == configured


def test_what_takes_a_restart_is_declared_so() -> None:
    restart = {entry.key for shape in (shared.Shared, balancer_config.Config, bridge_config.Config)
               for entry in settings_of(shape) if entry.setting.restart}

    assert restart == {
        "interface", "engine", "accept_version_1", "max_flows", "metrics", "control", "token_file",
        "probe_port", "log_level",
        "log_format", "lifetime", "xdp", "id_bits", "state_directory", "queue", "mark", "address",
        "mode"}
    _, _, told = reference.PAGE.read_text().partition("**What takes a restart**")
    told = told.partition("\n- **")[0]
    assert restart <= set(re.findall("`([a-z0-9_]+)`", told))
