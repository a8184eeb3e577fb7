"""Much traffic through the pair: every octet, every request, always the same backend."""

import hashlib
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from traffic import (
    ALONE,
    URL,
    Pair,
    backends_of,
    connect,
    download,
    request,
    segments_sent,
    send_alone,
    start_quick,
    until_end,
    wrk,
)

from lab.topology import Lab

GIGABYTE = 1_000_000_000
CHUNK_LEN = 1 << 20


def _pseudo_random_file(lab: Lab, name: str, length: int) -> str:
    """A file of which no two chunks are alike, made fast. Returns: its digest."""
    chunk = random.Random(name).randbytes(CHUNK_LEN)
    digest = hashlib.sha256()
    with (lab.files / name).open("wb") as file:
        for number in range(-(-length // CHUNK_LEN)):
            shift = number * 4099 % CHUNK_LEN
            piece = (number.to_bytes(8) + chunk[shift:] + chunk[:shift])[:CHUNK_LEN]
            piece = piece[:length - number * CHUNK_LEN]
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


@pytest.mark.slow
def test_a_gigabyte_arrives_octet_for_octet(pair: Pair, thorough: bool) -> None:
    """A fifth of one, if not thorough."""
    expected = _pseudo_random_file(pair.lab, "gigabyte", GIGABYTE // (1 if thorough else 5))

    digest = download(pair.lab, name="gigabyte", timeout_s=300)

    (pair.lab.files / "gigabyte").unlink()
    assert digest == expected


def test_many_requests_on_one_connection_all_reach_its_backend(
    pair: Pair, thorough: bool
) -> None:
    most = 5000 if thorough else 1000

    def ask(number: int) -> list[list[str]]:
        answers = pair.lab.client.curl(f"{URL}/kept/{number}/[1-{most}]", "--fail",
                                       timeout_s=120)
        return [line.split() for line in answers.splitlines()]

    with ThreadPoolExecutor(10) as pool:
        connections = list(pool.map(ask, range(10)))

    for number, answers in enumerate(connections):
        assert [path for _, path, *_ in answers] == [
            f"/kept/{number}/{n}" for n in range(1, most + 1)]
        assert len({(backend, client) for backend, _, client in answers}) == 1
    assert {answers[0][0] for answers in connections} == {"backend1", "backend2"}


@pytest.mark.parametrize("length", [1, 8, 25, 50, 100])
def test_a_request_sent_octet_by_octet_reaches_its_urls_backend(pair: Pair, length: int) -> None:
    paths = [f"/{number:0{length}d}"[:length + 1] for number in range(4)]
    whole = backends_of(pair.lab, paths)

    answers, segments = {}, {}
    for path in paths:
        octets = request(path, "Connection: close")
        with connect(pair.lab.client) as client:
            for octet in octets:
                send_alone(client, bytes([octet]))
            answers[path] = until_end(client).partition(b"\r\n\r\n")[2].decode().split()
            segments[path] = segments_sent(client) >= len(octets)

    assert {path: answer[0] for path, answer in answers.items()} == whole
    assert [answer[1] for answer in answers.values()] == paths
    assert all(segments.values())


def test_names_never_move_not_even_when_all_is_restarted_in_another_order(thorough: bool) -> None:
    paths = [f"/object/{number}" for number in range(3000 if thorough else 450)]
    with Lab(backends=3) as lab:
        pair = start_quick(lab)
        first = backends_of(lab, paths, parallel=2)
        again = backends_of(lab, paths, parallel=2)
        for process in (*pair.bridges, pair.balancer):
            process.stop()
        for backend in lab.backends:
            lab.start_bridge(backend)
        lab.start_balancer(*(
            word for backend in reversed(lab.backends)
            for word in ("--backend", f"{backend.address},id={backend.number}")
        ), defaults=False)

        restarted = backends_of(lab, paths, parallel=2)

    assert again == first
    assert restarted == first
    shares = Counter(first.values())
    assert set(shares) == {"backend1", "backend2", "backend3"}
    assert min(shares.values()) > (0.26 if thorough else 0.2) * len(paths)


@pytest.mark.slow
def test_a_hundred_thousand_short_connections_leave_both_tables_empty(thorough: bool) -> None:
    """A twentieth of them, if not thorough."""
    most, duration = (100_000, "-d8s") if thorough else (5000, "-d2s")
    with Lab(clients=2) as lab:
        pair = start_quick(lab)
        served = 0

        while served < most:
            with ThreadPoolExecutor(2) as pool:
                served += sum(pool.map(
                    lambda node: wrk(node, "-c25", duration, *ALONE),
                    (lab.client, lab.client2),
                ))

        pair.wait_until_empty()
        assert all(process.running for process in (pair.balancer, *pair.bridges))
