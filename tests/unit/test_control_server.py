"""What answers HTTP: calls into the loop, bounds on whoever asks, the socket itself."""

import gc
import json
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from common.control import api, place, server
from common.control.api import Common, Views
from common.control.forms import Asked, Content, Refused
from common.control.inbox import Inbox
from common.control.server import End, Server
from common.counters import Counters, Sample, new_counters
from common.engine.sources import Sources

PATIENCE_S = 20.0


def _raise(_: object) -> None:
    raise


# --- calls into the loop ---


def test_calls_are_carried_out_in_the_loops_thread_and_in_order() -> None:
    inbox, done = Inbox(), []
    sources = Sources([inbox], _raise)
    calls = []
    asking = threading.Thread(target=lambda: calls.extend(
        inbox.call(lambda number=number: done.append((number, threading.get_ident())) or number)
        for number in range(3)))
    asking.start()
    asking.join()

    while len(done) < 3:
        sources.wait(PATIENCE_S)

    assert done == [(number, threading.get_ident()) for number in range(3)]
    assert [call.result(0) for call in calls] == [0, 1, 2]


def test_what_a_call_raises_is_for_who_asked() -> None:
    inbox = Inbox()
    failing, sound = inbox.call(lambda: 1 // 0), inbox.call(lambda: "done")

    Sources([inbox], _raise).wait(PATIENCE_S)

    assert isinstance(failing.exception(0), ZeroDivisionError)
    assert sound.result(0) == "done"


def test_what_nobody_waits_for_any_more_is_not_called() -> None:
    inbox, done = Inbox(), []
    inbox.call(lambda: done.append("cancelled")).cancel()
    inbox.call(lambda: done.append("wanted"))

    Sources([inbox], _raise).wait(PATIENCE_S)

    assert done == ["wanted"]


def test_packets_have_their_turn_between_calls() -> None:
    inbox = Inbox()
    calls = [inbox.call(lambda: time.sleep(0.01)) for _ in range(3)]
    sources = Sources([inbox], _raise)

    done = []
    for _ in calls:
        sources.wait(PATIENCE_S)
        done.append(sum(call.done() for call in calls))

    assert done == [1, 2, 3]


# --- the server ---


class Engine:
    """As api.Engine."""

    counters: Counters = new_counters()
    state, line = "ready", "ready: a service"

    def samples(self) -> list[Sample]:
        return []


class Running:
    """A server on a socket, whose loop runs while `sources` are waited for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = Engine()
        self.inbox = Inbox()
        self.made: list[weakref.ref] = []
        common = Common("test", self.engine, Views(
            self.inbox, self.facts, {"fails": self.fail, "loops": self.loop},
            {"echo": self.echo}, ("status", "reasons")))
        self.server = Server([End(place.listen(path, "file", True), common.gets(),
                                  common.posts())])
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        sources = Sources([self.inbox], _raise)
        while not self._stop:
            sources.wait(0.05)

    def start_loop(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop = True
        if self._thread.ident:
            self._thread.join()
        self.server.close()

    async def facts(self) -> dict:
        return await api.in_loop(self.inbox, lambda: {"flows": 7})

    async def fail(self, _: Asked) -> None:
        raise KeyError("our bug")

    async def echo(self, asked: Asked) -> dict:
        if "words" not in asked.words:
            raise Refused(409, "say something")
        return dict(asked.words)

    async def loop(self, _: Asked) -> Content:
        class Cycle:
            pass

        made = Cycle()
        made.itself = made  # type: ignore[attr-defined]
        self.made.append(weakref.ref(made))
        return Content(b"")

    def ask(self, path: str, body: str | None = None, method: str = "",
            headers: dict[str, str] | None = None) -> tuple[int, dict | str]:
        connection = HTTPConnection("x", timeout=PATIENCE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE_S)
        connection.sock.connect(str(self.path))
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body,
                               headers or {})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(text) if is_json and text else text


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path / "test.sock")
    yield made
    made.close()


def test_questions_and_orders_are_answered(running: Running) -> None:
    running.start_loop()

    status = running.ask("/api/v1/status")

    assert status[0] == 200
    assert status[1]["flows"] == 7
    assert (status[1]["program"], status[1]["ready"]) == ("test", "ready: a service")
    assert running.ask("/healthz") == (200, "ready\n")
    assert running.ask("/api/v1/reasons") == (200, {})
    assert running.ask("/api/v1/echo?number=1", '{"words": 2}') == (
        200, {"number": "1", "words": 2})
    assert running.ask("/api/v1/status", method="HEAD")[0] == 200


@pytest.mark.parametrize("asked, status, words", [
    (("/nowhere",), 404, "there is no /nowhere; there are: /api/v1/echo /api/v1/events"),
    (("/api/v1/status", "{}"), 405, "/api/v1/status takes GET"),
    (("/api/v1/echo",), 405, "/api/v1/echo takes POST"),
    (("/api/v1/echo", "{}", "DELETE"), 405, "GET, HEAD or POST is meant"),
    (("/api/v1/echo", "{}"), 409, "say something"),
    (("/api/v1/echo", "[" * 5000), 400, "the body is no JSON object"),
    (("/api/v1/fails",), 500, "a fault of the program's; its log has the details"),
])
def test_what_cannot_be_answered_says_why(
    running: Running, asked: tuple[str, ...], status: int, words: str
) -> None:
    running.start_loop()

    found = running.ask(*asked)

    assert found[0] == status
    assert words in found[1]["error"]


def test_a_loop_that_is_stuck_or_has_not_begun_is_not_ready(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_LOOP_S", 0.2)

    stuck = running.ask("/healthz")
    running.engine.state = "starting"

    assert stuck == (503, "not ready: the program has handled no packets for 0.2 s\n")
    assert running.ask("/healthz") == (503, "not ready: starting\n")
    assert running.ask("/api/v1/status")[0] == 503


def test_what_is_sent_is_bounded(running: Running) -> None:
    running.start_loop()
    with pytest.raises((OSError, Exception), match=r"reset|Broken|closed|disconnected|without"):
        running.ask("/api/v1/echo", "x" * (4 * server.MAX_OCTETS))

    headers = {f"X-{number}": "x" * 3000 for number in range(200)}
    with pytest.raises((OSError, Exception), match=r"reset|Broken|closed|disconnected|without"):
        running.ask("/healthz", headers=headers)

    assert running.ask("/healthz", headers={"X": "x" * 6000})[0] == 400
    assert running.ask("/healthz") == (200, "ready\n")


def test_what_connections_leave_behind_is_freed(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine has no collector of its own: it would walk all flows."""
    monkeypatch.setattr(server, "_COLLECT_EVERY", 20)
    running.start_loop()
    gc.disable()
    try:
        for _ in range(25):
            running.ask("/api/v1/loops")
        until_s = time.monotonic() + PATIENCE_S
        while all(one() is not None for one in running.made):
            assert time.monotonic() < until_s
            running.ask("/healthz")
            time.sleep(0.05)
    finally:
        gc.enable()


def test_nothing_of_a_clients_faults_is_logged(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.start_loop()
    for octets in (b"\0\1\2\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(running.path))
            client.sendall(octets)
            client.shutdown(socket.SHUT_WR)
            client.recv(1000)

    assert running.ask("/healthz")[0] == 200
    assert not caplog.records


def listen(running: Running) -> socket.socket:
    """A client of events, which has got its first one."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE_S)
    client.connect(str(running.path))
    client.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
    return client


def until(client: socket.socket, words: bytes) -> bytes:
    octets = b""
    while words not in octets:
        more = client.recv(1 << 16)
        assert more, octets
        octets += more
    return octets


def test_events_go_on_for_longer_than_a_question_may(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_TIME_S", 1.0)
    monkeypatch.setattr("common.control.events.EVERY_S", 0.2)
    running.start_loop()
    client = listen(running)

    octets = until(client, b"event: look")
    began_s = time.monotonic()
    while time.monotonic() - began_s < 2:
        octets += until(client, b"\n\n")

    assert b"Content-Type: text/event-stream" in octets
    looks = re.findall(rb"event: look\ndata: (.*)\n\n", octets)
    assert len(looks) > 2
    assert set(json.loads(looks[-1])) == {"status", "reasons"}
    client.close()


def test_few_may_listen_and_whoever_has_gone_makes_room(running: Running) -> None:
    running.start_loop()
    clients = [listen(running) for _ in range(server.MAX_STREAMS)]
    for client in clients:
        until(client, b"event: look")

    too_many = until(listen(running), b"too many listen")
    clients.pop().close()
    until_s = time.monotonic() + PATIENCE_S
    while b"event: look" not in listen(running).recv(1 << 16):
        assert time.monotonic() < until_s

    assert b" 503 " in too_many
    for client in clients:
        client.close()


# --- the token ---


@pytest.mark.parametrize("authorization, status", [
    ("Bearer 0123456789abcdef", 200), ("", 401), ("Bearer ", 401), ("0123456789abcdef", 401),
    ("Bearer 0123456789abcdeF", 401), ("Basic 0123456789abcdef", 401), ("Bearer \xff", 401)])
def test_orders_need_the_token_where_there_is_one(
    running: Running, tmp_path: Path, authorization: str, status: int
) -> None:
    path = running.path = tmp_path / "other.sock"
    common = Common("test", running.engine, Views(running.inbox, running.facts, {},
                                                  {"echo": running.echo}, ()))
    other = Server([End(place.listen(path, "file", True), common.gets(), common.posts(),
                        token="0123456789abcdef")])
    running.start_loop()

    found = running.ask("/api/v1/echo", '{"words": 1}', headers={"Authorization": authorization})
    read = running.ask("/api/v1/status")
    other.close()

    assert (found[0], read[0]) == (status, 200)


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    Running(tmp_path / "first.sock").close()
    before = count()
    for number in range(3):
        made = Running(tmp_path / f"{number}.sock")
        made.close()
        os.close(made.inbox.fileno())

    assert count() <= before
