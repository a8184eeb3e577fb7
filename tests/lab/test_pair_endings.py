"""How connections begin and end: as if nothing were in the middle, and no flow stays behind.

The server is nginx, or a socket of the test on the backend, so that either side
does what the test says when the test says it.
"""

import errno
import hashlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from traffic import (
    ADOPTS,
    PATIENCE_S,
    Pair,
    accept,
    connect,
    count,
    exactly,
    large_file,
    listen,
    one_answer,
    request,
    reset,
    sockets,
    start_quick,
    until_end,
    window_seen,
)

from lab.node import Node, wait_until
from lab.topology import CLIENT, Lab

REQUEST = request("/it")
PORT = 40000


@pytest.fixture(scope="module")
def web() -> Iterator[Pair]:
    """The pair before one nginx."""
    with Lab(backends=1) as network:
        yield start_quick(network)


@pytest.fixture(scope="module")
def bare() -> Iterator[Pair]:
    """The pair with nothing listening behind it: the tests do."""
    with Lab(backends=1) as network:
        yield start_quick(network, nginx=False, bridge="replay = 12\n")


@pytest.fixture
def server(bare: Pair) -> Iterator[socket.socket]:
    with listen(bare.lab.backend1) as made:
        yield made


@pytest.fixture
def ends(bare: Pair, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and its server, after a first exchange."""
    client, served = _open(bare, server)
    with client, served:
        yield client, served


def _open(pair: Pair, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = connect(pair.lab.client)
    client.sendall(REQUEST)
    served = accept(server)
    assert exactly(served, len(REQUEST)) == REQUEST
    served.sendall(b"hello")
    assert exactly(client, 5) == b"hello"
    return client, served


def _wait_until_nothing_is_left(pair: Pair) -> None:
    """Wait until no table has a flow, and neither side an open socket."""
    pair.wait_until_empty()
    for node in (pair.lab.client, *pair.lab.backends):
        wait_until(lambda node=node: all(line.startswith("TIME-WAIT") for line in sockets(node)),
                   PATIENCE_S, f"no connection is left on {node.name}")


# --- the same ports again ---


def _server_closes_first(client: socket.socket) -> None:
    client.sendall(request("/it", "Connection: close"))
    assert b" /it " in until_end(client)
    client.close()


def _client_closes_first(client: socket.socket) -> None:
    client.sendall(REQUEST)
    assert b" /it " in one_answer(client)
    client.close()


def _client_resets(client: socket.socket) -> None:
    client.sendall(REQUEST)
    assert b" /it " in one_answer(client)
    reset(client)


def _connect_again(client: Node, port: int) -> socket.socket:
    """As `connect`, as soon as the client's own stack lets the port go."""
    made: list[socket.socket] = []

    def connected() -> bool:
        try:
            made.append(connect(client, port))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                raise
        return bool(made)

    wait_until(connected, PATIENCE_S, f"port {port} is free")
    return made[0]


@pytest.mark.parametrize("timestamps", [1, 0], ids=["timestamps", "no timestamps"])
@pytest.mark.parametrize("end", [_server_closes_first, _client_closes_first, _client_resets])
def test_a_client_may_use_its_port_again_and_again(
    end: Callable[[socket.socket], None], timestamps: int, thorough: bool
) -> None:
    """A second apart, where the kernel has no tcp_tw_reuse_delay."""
    with Lab(backends=1) as lab:
        pair = start_quick(lab)
        lab.client.run(["sysctl", "-qw", f"net.ipv4.tcp_timestamps={timestamps}"])
        _let_ports_be_used_again(lab.client, timestamps)

        for _ in range(50 if thorough else 15):
            with _connect_again(lab.client, PORT) as client:
                end(client)

        _wait_until_nothing_is_left(pair)


def test_a_client_may_come_back_to_a_server_that_still_has_its_old_connection() -> None:
    with Lab(backends=1) as lab:
        pair = start_quick(lab)
        old = connect(lab.client, PORT)
        old.sendall(REQUEST)
        one_answer(old)
        pair.bridges[0].kill()
        reset(old)  # which no bridge tells the server
        lab.start_bridge(lab.backend1)

        with connect(lab.client, PORT) as client:
            client.sendall(request("/again"))
            answer = one_answer(client).split()

        assert answer[1:3] == [b"/again", f"{CLIENT}:{PORT}".encode()]


def _let_ports_be_used_again(client: Node, timestamps: int) -> None:
    """As far as this kernel can: without waiting for TIME_WAIT to end."""
    client.run(["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"])
    client.run(["sysctl", "-qw", "net.ipv4.tcp_tw_reuse_delay=1"], check=False)
    if not timestamps:  # then it waits in any case, if it has such sockets at all
        client.run(["sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0"])


# --- closing ---


def test_both_sides_may_close_at_the_same_time() -> None:
    with Lab(backends=1, impair={"client": {"delay_ms": 200}}) as lab:
        pair = start_quick(lab, nginx=False)
        with listen(lab.backend1) as server:
            client, served = _open(pair, server)
            with client, served:
                client.shutdown(socket.SHUT_WR)
                served.shutdown(socket.SHUT_WR)
                ends = until_end(client), until_end(served)

        assert ends == (b"", b"")
        # Only those whose FINs have crossed are both in this state.
        for node in (lab.client, lab.backend1):
            wait_until(lambda node=node: [line.split()[0] for line in sockets(node)]
                       == ["TIME-WAIT"], PATIENCE_S, f"{node.name} has closed")
        _wait_until_nothing_is_left(pair)


def test_a_server_may_half_close_and_still_be_sent_to(bare: Pair, ends) -> None:
    client, served = ends

    served.shutdown(socket.SHUT_WR)
    first = until_end(client)
    client.sendall(b"more" * 50_000)
    client.close()
    more = until_end(served)
    served.close()

    assert (first, more) == (b"", b"more" * 50_000)
    _wait_until_nothing_is_left(bare)


def test_a_request_may_come_with_the_clients_fin(bare: Pair, server: socket.socket) -> None:
    with connect(bare.lab.client) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        client.sendall(REQUEST)
        client.shutdown(socket.SHUT_WR)
        with accept(server) as served:
            asked = until_end(served)
            served.sendall(b"answer")
        answer = until_end(client)

    assert (asked, answer) == (REQUEST, b"answer")
    _wait_until_nothing_is_left(bare)


def test_a_client_may_leave_without_a_word(bare: Pair) -> None:
    with connect(bare.lab.client) as client:
        client.shutdown(socket.SHUT_WR)

        said = until_end(client)

    assert said == b""
    _wait_until_nothing_is_left(bare)


@pytest.mark.parametrize("received_len", [0, 1_000_000])
def test_a_client_that_resets_a_transfer_leaves_nothing(web: Pair, received_len: int) -> None:
    large_file(web.lab, 20_000_000)
    client = connect(web.lab.client)
    client.sendall(request("/files/large"))
    if received_len:
        exactly(client, received_len)
    else:
        wait_until(lambda: len(sockets(web.lab.backend1)) == 1, PATIENCE_S, "it has begun")

    reset(client)

    _wait_until_nothing_is_left(web)
    assert sockets(web.lab.backend1) == []


def test_a_server_that_resets_reaches_the_client(bare: Pair, ends) -> None:
    client, served = ends

    reset(served)

    with pytest.raises(ConnectionResetError):
        client.recv(1)
    _wait_until_nothing_is_left(bare)


def test_a_server_that_dies_in_a_transfer_leaves_no_client_hanging() -> None:
    with Lab(backends=1) as lab:
        pair = start_quick(lab, nginx=False)
        nginx = lab.start_nginx(lab.backend1)
        large_file(lab, 20_000_000)
        with connect(lab.client) as client:
            client.sendall(request("/files/large"))
            exactly(client, 1_000_000)

            os.killpg(nginx.pid, signal.SIGKILL)  # with its worker
            nginx.popen.wait()
            try:
                rest = len(until_end(client))
            except ConnectionResetError:
                rest = 0

        assert rest < 19_000_000
        _wait_until_nothing_is_left(pair)


def test_a_refused_connection_is_reset(bare: Pair) -> None:
    with connect(bare.lab.client) as client:  # and nothing listens
        client.sendall(REQUEST)

        with pytest.raises(ConnectionResetError):
            client.recv(1)

    _wait_until_nothing_is_left(bare)


# --- slow, full and silent servers ---


@pytest.fixture
def full(bare: Pair) -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A server that accepts nobody more, and the connections that wait for it."""
    backend = bare.lab.backend1
    with listen(backend, backlog=1) as server:
        waiting = [connect(bare.lab.client, address=backend.server) for _ in range(2)]
        yield server, waiting


def _let_in(server: socket.socket, waiting: list[socket.socket]) -> None:
    for connection in waiting:
        accept(server).close()
        connection.close()


def _wait_until_refused(pair: Pair, before: int, times: int) -> None:
    wait_until(lambda: count(pair.lab.backend1, "ListenOverflows") >= before + times,
               PATIENCE_S, "the server has had no room")


def test_a_full_server_answers_when_it_has_room_again(bare: Pair, full) -> None:
    server, waiting = full
    before = count(bare.lab.backend1, "ListenOverflows")
    with connect(bare.lab.client) as client:
        client.sendall(REQUEST)
        _wait_until_refused(bare, before, 2)

        _let_in(server, waiting)
        with accept(server) as served:
            asked = exactly(served, len(REQUEST))
            served.sendall(b"late")
        answer = until_end(client)

    assert count(bare.lab.client, "TCPTimeouts") > 0
    assert (asked, answer) == (REQUEST, b"late")
    _wait_until_nothing_is_left(bare)


def test_all_that_a_client_says_meanwhile_reaches_a_full_server(bare: Pair, full) -> None:
    server, waiting = full
    body = b"body" * 10_000
    before = count(bare.lab.backend1, "ListenOverflows")
    with connect(bare.lab.client) as client:
        client.sendall(REQUEST)
        _wait_until_refused(bare, before, 1)

        client.sendall(body)
        client.shutdown(socket.SHUT_WR)
        _let_in(server, waiting)
        with accept(server) as served:
            asked = until_end(served)

        assert asked == REQUEST + body
        assert until_end(client) == b""
    _wait_until_nothing_is_left(bare)


def test_a_client_that_resets_before_a_full_server_had_room_never_reaches_it(
    bare: Pair, full
) -> None:
    server, waiting = full
    before = count(bare.lab.backend1, "ListenOverflows")
    client = connect(bare.lab.client)
    client.sendall(REQUEST)
    _wait_until_refused(bare, before, 1)

    reset(client)
    bare.wait_until_empty()
    _let_in(server, waiting)

    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_a_client_of_a_silent_server_is_reset_or_waits_for_it() -> None:
    with Lab(backends=1) as lab:
        pair = start_quick(lab, nginx=False, bridge="replay = 2\n")
        with listen(lab.backend1, backlog=1) as server:
            waiting = [connect(lab.client, address=lab.backend1.server) for _ in range(2)]
            with connect(lab.client) as client:
                client.sendall(REQUEST)

                if ADOPTS:  # the client's own repetitions ask the server again
                    for _ in waiting:
                        server.accept()[0].close()
                    with server.accept()[0] as served:
                        assert served.recv(len(REQUEST)) == REQUEST
                else:
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)

            pair.wait_until_empty()
            for connection in waiting:
                connection.close()


# --- windows, probes, urgent data ---


@pytest.mark.parametrize("scaling", [1, 0], ids=["scaled windows", "a server without scaling"])
def test_each_side_sees_the_others_window(
    bare: Pair, server: socket.socket, scaling: int
) -> None:
    backend = bare.lab.backend1
    backend.run(["sysctl", "-qw", f"net.ipv4.tcp_window_scaling={scaling}"])

    client, served = _open(bare, server)

    backend.run(["sysctl", "-qw", "net.ipv4.tcp_window_scaling=1"])
    with client, served:
        windows = window_seen(client), window_seen(served)
    assert min(windows) > 50_000
    assert max(windows) < 100_000


@pytest.mark.parametrize("scaling", [1, 0], ids=["scaled windows", "a server without scaling"])
@pytest.mark.parametrize("slow", ["client", "server"])
def test_who_does_not_read_for_a_while_loses_nothing(
    bare: Pair, server: socket.socket, slow: str, scaling: int
) -> None:
    backend = bare.lab.backend1
    backend.run(["sysctl", "-qw", f"net.ipv4.tcp_window_scaling={scaling}"])
    client, served = _open(bare, server)
    backend.run(["sysctl", "-qw", "net.ipv4.tcp_window_scaling=1"])
    content = bytes(range(256)) * 80_000
    sender, node = (served, backend) if slow == "client" else (client, bare.lab.client)
    reader = client if slow == "client" else served

    with client, served, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(sender.sendall, content)
        wait_until(lambda: any("persist" in line for line in sockets(node)), PATIENCE_S,
                   "the window is closed")
        received = exactly(reader, len(content))
        sent.result()

    assert hashlib.sha256(received).digest() == hashlib.sha256(content).digest()
    _wait_until_nothing_is_left(bare)


@pytest.mark.parametrize("side", ["client", "server"])
def test_keep_alive_probes_are_answered(bare: Pair, ends, side: str) -> None:
    client, served = ends
    asking, node = (client, bare.lab.client) if side == "client" else (served, bare.lab.backend1)
    for name, value in (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 2)):
        asking.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    before = count(node, "TCPKeepAlive")

    asking.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The second in a row that stays unanswered would end the connection.
    wait_until(lambda: count(node, "TCPKeepAlive") >= before + 4, PATIENCE_S, "it has asked")
    client.sendall(b"still")
    asked = exactly(served, 5)
    served.sendall(b"here")

    assert (asked, exactly(client, 4)) == (b"still", b"here")


@pytest.mark.parametrize("side", ["client", "server"])
def test_urgent_data_passes(ends, side: str) -> None:
    sender, reader = ends if side == "client" else reversed(ends)

    sender.sendall(b"before")
    sender.send(b"!", socket.MSG_OOB)
    sender.sendall(b"after")
    sender.shutdown(socket.SHUT_WR)
    urgent = select.poll()  # select() has a bound on descriptors' numbers
    urgent.register(reader, select.POLLPRI)
    urgent.poll(PATIENCE_S * 1000)
    before = exactly(reader, 6)
    urgent = reader.recv(1, socket.MSG_OOB)

    assert (before, urgent, until_end(reader)) == (b"before", b"!", b"after")
