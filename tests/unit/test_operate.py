"""What an operator orders: shares that follow, what is kept of it, and what the commands say."""

import asyncio
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from test_pool import SECRETS, VIP, backend, balancer, handoff, later, open_flows, where

from balancer import cli, config
from balancer.control import kept
from balancer.control.kept import Kept, Name, weighed
from balancer.control.orders import Orders
from balancer.control.views import Shown, gets
from balancer.datapath import Datapath
from balancer.pool.share import Operator, Standing
from balancer.reckoner import Reckoner
from common.control import place
from common.control.api import Common, Views
from common.control.forms import Asked, Refused
from common.control.inbox import Inbox
from common.control.server import End, Server
from common.engine.sources import Sources
from common.verdict import Event

PATIENCE_S = 60
WEB = f"{VIP}:80"


class Engine:
    """As api.Engine."""

    state, line = "ready", "ready: web, tls"

    def __init__(self, datapath: Datapath) -> None:
        self.counters = datapath.counters
        self.samples = datapath.samples


class Operated:
    """A data path with two services, whose loop runs, and what is asked of it."""

    def __init__(self, path: Path | None = None) -> None:
        one = balancer(backend(1), backend(2))
        (web,) = (service.config for service in one.services)
        other = replace(web, name="tls", port=443, dscp=7, backends=(backend(1), backend(3)))
        self.datapath = Datapath(config.Config(services=(web, other)), SECRETS, random=Random(1))
        self.web, self.tls = self.datapath.services
        self._inbox, reckoner = (inbox := Inbox()), Reckoner(self.datapath)
        shown = self._shown = Shown(self.datapath, None)
        self.kept = Kept(path)
        kept.stand(self.datapath.services.backends(), self.kept.standings)
        self._gets = gets(inbox, shown)
        self._posts = Orders(inbox, shown, reckoner, self.kept).posts()
        self._sources = Sources([inbox, reckoner], _raise)
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            self._sources.wait(0.02)

    def serve(self, path: Path) -> Server:
        """Answer at a control socket."""
        async def facts() -> dict[str, Any]:
            return await self._shown.facts(self._inbox)

        views = Views(self._inbox, facts, self._gets, self._posts,
                      ("status", "services", "backends", "reasons"))
        common = Common("balancer", Engine(self.datapath), views)
        return Server([End(place.listen(path, "file", True), common.gets(), common.posts())])

    def close(self) -> None:
        self._stop = True
        self._thread.join()

    def ask(self, name: str, **query: str) -> Any:
        return asyncio.run(self._gets[name](Asked(query)))

    def order(self, name: str, **body: object) -> list[dict[str, Any]]:
        return asyncio.run(self._posts[name](Asked({}, body)))["backends"]

    def goes_to(self, first: int) -> set[int]:
        return {where(handoff(self.datapath, number)) for number in range(first, first + 40)}


def _raise(_: object) -> None:
    raise


@pytest.fixture
def site() -> Iterator[Operated]:
    made = Operated()
    yield made
    made.close()


def test_a_drained_backend_keeps_its_flows_in_all_its_services(site: Operated) -> None:
    before = open_flows(site.datapath, 40)

    found = site.order("drain", backend=1)

    assert [(each["service"], each["state"], each["share"]) for each in found] == [
        ("web", "draining", 0), ("tls", "draining", 0)]
    assert site.goes_to(100) == {2}
    assert {number: where(later(site.datapath, number)) for number in before} == before
    site.order("undrain", backend=str(VIP + 11))
    assert site.goes_to(200) == {1, 2}


def test_a_disabled_backend_loses_its_flows_in_one_service(site: Operated) -> None:
    before = open_flows(site.datapath, 40)

    found = site.order("disable", backend=1, service="web")

    assert [each["service"] for each in found] == ["web"]
    assert {later(site.datapath, number).reason
            for number, at in before.items() if at == 1} == {Event.RESET}
    assert [each["state"] for each in site.ask("backends", backend="1")["backends"]] == [
        "disabled", "up"]
    site.order("enable", backend=1)
    assert site.goes_to(200) == {1, 2}


def test_a_weight_holds_until_it_is_taken_back(site: Operated) -> None:
    (found,) = site.order("weight", backend=2, weight="3")

    assert (found["weight"], found["configured_weight"], found["share"]) == (3, 1, 0.75)
    assert site.order("weight", backend=2, weight=0)[0]["share"] == 0
    assert site.goes_to(100) == {1}
    assert site.order("weight", backend=2, weight="default")[0]["share"] == 0.5


@pytest.mark.parametrize("name, body, words", [
    ("drain", {"backend": 7}, f"there is no backend 7; there are: 1 ({VIP + 11}), 2 "),
    ("drain", {"backend": 3, "service": "web"}, "there is no backend 3; there are: 1"),
    ("drain", {"backend": 1, "service": "mail"}, "there is no service mail; there are: web, tls"),
    ("drain", {}, "backend: an id or an address is needed"),
    ("weight", {"backend": 1, "weight": "65536"}, "weight: a whole number from 0 to 65535"),
    ("weight", {"backend": 1, "weight": "²"}, "weight: a whole number"),
    ("weight", {"backend": 1}, "weight: a whole number"),
])
def test_a_wrong_order_changes_nothing(
    site: Operated, name: str, body: dict[str, object], words: str
) -> None:
    with pytest.raises(Refused) as refused:
        site.order(name, **body)

    assert str(refused.value).startswith(words)
    assert {each["operator"] for each in site.ask("backends")["backends"]} == {"enabled"}


def test_flows_are_found_by_client_service_and_backend(site: Operated) -> None:
    opened = open_flows(site.datapath, 40)

    assert site.ask("flows")["total"] == 40
    of_first = site.ask("flows", backend="1", service="web")["flows"]
    assert len(of_first) == list(opened.values()).count(1)
    (one,) = site.ask("flows", client="10.0.0.7")["flows"]
    assert (one["client"], one["backend"], one["state"]) == ("10.0.0.7:4096", opened[7], "new")
    few = site.ask("flows", client="10.0.0.0/27", limit="5")
    assert (len(few["flows"]), few["more"]) == (5, True)
    for query, words in (({"client": "x"}, "client: an IPv4 address or network"),
                         ({"limit": "0"}, "limit: a whole number from 1 to 1000"),
                         ({"service": "mail"}, "there is no service mail")):
        with pytest.raises(Refused, match=words):
            site.ask("flows", **query)


# --- what is kept ---


def test_what_is_kept_holds_at_the_next_start_until_it_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "kept.json"
    first = Operated(path)
    first.order("drain", backend=1, service="web", keep=True)
    first.order("weight", backend=3, weight=5, keep="true")
    first.order("disable", backend=2)
    first.close()

    second = Operated(path)
    standings = {(each["service"], each["id"]): (each["operator"], each["weight"])
                 for each in second.ask("backends")["backends"]}
    second.order("undrain", backend=1)
    second.order("weight", backend=3, weight="default")
    second.close()

    assert standings == {("web", 1): ("draining", 1), ("web", 2): ("enabled", 1),
                         ("tls", 1): ("enabled", 1), ("tls", 3): ("enabled", 5)}
    assert not path.exists()


def test_what_is_kept_is_for_backends_that_are_new_and_none_else(tmp_path: Path) -> None:
    made = Operated(tmp_path / "state" / "kept.json")
    made.close()
    one, two = made.web.pool
    kept_names = {Name(WEB, each.id): Standing(Operator.DRAINING) for each in (one, two)}

    changed = kept.stand([two], kept_names)  # the order for the other may be on its way back

    assert changed == [made.web]
    assert [each.standing.operator for each in (one, two)] == [
        Operator.ENABLED, Operator.DRAINING]


def test_the_first_tables_are_made_of_what_is_kept() -> None:
    (service,) = (each.config for each in balancer(backend(1, 2), backend(2, 2), backend(3, 2))
                  .services)
    found = weighed(config.Config(services=(service,)), {
        Name(WEB, 1): Standing(Operator.DRAINING, weight=9), Name(WEB, 2): Standing(weight=7),
        Name("192.0.2.9:80", 3): Standing(Operator.DISABLED)})

    assert [each.weight for each in found.services[0].backends] == [0, 7, 2]


@pytest.mark.parametrize("content", [
    "", "[]", '{"backends": 5}', '{"backends": [{"service": "x"}]}',
    '{"backends": [{"service": "x", "backend": 1, "operator": "?", "weight": null}]}'])
def test_a_file_that_is_not_ours_does_not_count(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "kept.json"
    path.write_text(content)

    assert Kept(path).standings == {}
    assert "is not as this program writes it, so it does not count" in caplog.text


def test_a_file_that_others_may_write_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    made = Kept(path)
    made.note(Name(WEB, 1), Standing(Operator.DRAINING))
    made.write()
    assert path.stat().st_mode & 0o777 == 0o600
    assert Kept(path).standings == {Name(WEB, 1): Standing(Operator.DRAINING)}

    path.chmod(0o666)

    assert Kept(path).standings == {}


def test_an_order_that_cannot_be_kept_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    made = Operated(tmp_path / "state" / "kept.json")
    try:
        with pytest.raises(Refused, match="it is done, but not kept for a restart"):
            made.order("drain", backend=1, keep=True)
        assert made.goes_to(0) == {2}
    finally:
        made.close()


# --- the commands ---


def test_without_a_daemon_a_command_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "RUN", tmp_path)
    monkeypatch.setattr("common.engine.netns.name", lambda: "")
    file = tmp_path / "balancer.toml"
    file.write_text("queue = 35\n")

    assert cli.main(["status", "--config", str(file)]) == 3
    said = capsys.readouterr().err
    assert f"nothing answers at {tmp_path}/balancer-35.sock: no balancer runs here" in said
    assert "`systemctl start l3dsr-balancer` or `sudo balancer` starts it" in said
    file.write_text('control = "/run/own.sock"\n')
    assert cli.main(["drain", "1", "--config", str(file)]) == 3
    assert "/run/own.sock" in capsys.readouterr().err
    assert cli.main(["status", "--socket", str(tmp_path / "x")]) == 3
    assert cli.main(["status", "--config", str(tmp_path / "missing")]) == 2


@pytest.fixture
def socket_path(site: Operated, tmp_path: Path) -> Iterator[str]:
    """Of a daemon that answers."""
    path = tmp_path / "control.sock"
    server = site.serve(path)
    yield str(path)
    server.close()


def test_commands_say_what_the_daemon_does(
    site: Operated, socket_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: str, code: int = 0) -> str:
        assert cli.main([*words, "--socket", socket_path]) == code
        return "".join(capsys.readouterr())

    open_flows(site.datapath, 40)

    assert re.search(r"^state +ready, for \d+ s, pid \d+, version", say("status"), re.MULTILINE)
    assert re.search(r"^flows +40 of 1,000,000 at most$", say("status"), re.MULTILINE)
    assert "web      192.168.33.10:80   http.path  rendezvous" in say("services")
    assert re.search(r"web +2 +192.168.33.22 +up +5 \(not 1\) +83.3%", say(
        "weight", "2", "5", "--service", "web"))
    assert re.search(r"tls +1 +192.168.33.21 +draining +1 +0.0% +0", say(
        "drain", "1", "--service", "tls", "--wait"))
    assert json.loads(say("undrain", "1", "--json"))["backends"][0]["operator"] == "enabled"
    assert json.loads(say("disable", "192.168.33.23", "--json"))["backends"][0]["id"] == 3
    assert "up" in say("enable", "3")
    assert len(say("flows", "--limit", "3").splitlines()) == 3 + 2
    assert "there are more; 40 in the table" in say("flows", "--limit", "3")
    assert say("health").splitlines() == [
        "service  id  address  state  up  since  last  passed  failed  it"]
    assert "there is no backend 9; there are: 1 " in say("drain", "9", code=1)
    assert "flows are left after 0 s; it stays draining" in say(
        "drain", "1", "--wait", "--timeout", "0", code=1)


def test_top_is_live_until_q_is_pressed(
    socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.control.api._LOOP_S", PATIENCE_S)  # the machine may be busy
    monkeypatch.setattr("common.control.server.MAX_TIME_S", PATIENCE_S)
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, 150))
    running = subprocess.Popen(
        [sys.executable, "-m", "balancer", "top", "--socket", socket_path, "--interval", "0.2"],
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env=environment)
    os.close(theirs)
    screen = b""
    until_s = time.monotonic() + 2 * PATIENCE_S
    while b"192.168.33.23" not in screen or screen.count(b"quit") < 3:
        if not select.select([ours], [], [], max(until_s - time.monotonic(), 0))[0]:
            pytest.fail(f"{len(screen)} octets, {running.poll()}: {screen[-4000:].decode()}")
        screen += os.read(ours, 1 << 16)

    os.write(ours, b"fq")
    while True:  # it does not end before what it has shown is read
        try:
            screen += os.read(ours, 1 << 16)
        except OSError:
            break
    code = running.wait(PATIENCE_S)
    os.close(ours)

    assert code == 0
    assert b"draining" not in screen
    assert b"sort by" in screen
    assert b"ready for" in screen


def test_top_needs_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert cli.main(["top", "--socket", str(tmp_path / "x")]) == 1

    assert "top needs a terminal; without one, `top --once`" in capsys.readouterr().err


def test_json_of_a_service_names_what_it_is(site: Operated) -> None:
    site.order("drain", backend=3)
    found = site.ask("services")["services"]

    assert json.dumps(found)
    assert [(each["name"], each["vip"], each["port"], each["backends"]) for each in found] == [
        ("web", str(VIP), 80, {"up": 2}), ("tls", str(VIP), 443, {"draining": 1, "up": 1})]
