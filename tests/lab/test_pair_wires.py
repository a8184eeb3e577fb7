"""Bad wires, small segments and stacks without some options: no octet and no request is lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from traffic import (
    URL,
    Pair,
    backends_of,
    count,
    download,
    large_file,
    start_quick,
    upload,
)

from lab.node import Node
from lab.topology import VIP, Lab

BAD = {"loss": 0.05, "reorder": 0.05, "duplicate": 0.05}
PATHS = [f"/small/{number}" for number in range(100)]
LONG_PATHS = [f"/long/{number}/{'and-so-on/' * 300}" for number in range(20)]  # over 3 segments

# On the wire of a node, in or out: what that leg carries.
LEGS = {
    "from the client to the VIP": ("client", "out"),
    "from the balancer": ("balancer", "out"),
    "from the balancer to the backend": ("backend", "in"),
    "from the backend to the client": ("backend", "out"),
}


def _wires(leg: str, seed: int) -> dict[str, dict[str, float | str]]:
    name, direction = LEGS[leg]
    names = ["backend1", "backend2"] if name == "backend" else [name]
    return {name: {**BAD, "direction": direction, "seed": seed} for name in names}


@pytest.fixture(scope="module")
def expected_backends(pair: Pair) -> dict[str, str]:
    """Which backend is whose, as a good wire shows it."""
    return backends_of(pair.lab, PATHS + LONG_PATHS)


@pytest.mark.parametrize("leg", LEGS)
def test_loss_reordering_and_duplicates_cost_no_request_and_no_octet(
    leg: str, expected_backends: dict[str, str], thorough: bool
) -> None:
    for seed in (1, 2, 3) if thorough else (1,):
        _check_bad_wire(leg, seed, expected_backends)


def _check_bad_wire(leg: str, seed: int, expected_backends: dict[str, str]) -> None:
    sent = os.urandom(1_000_000)
    with Lab(impair=_wires(leg, seed)) as lab:
        start_quick(lab)
        expected = large_file(lab, 2_000_000)

        answered = backends_of(lab, expected_backends, parallel=20)
        downloaded = [download(lab) for _ in range(2)]
        uploaded = upload(lab, "it", sent)
        repeated = sum(count(node, "RetransSegs") for node in (lab.client, *lab.backends))

    assert answered == expected_backends
    assert repeated > 20  # the wire was bad indeed
    assert downloaded == [expected, expected]
    assert uploaded == [sent]


def test_what_a_client_says_it_has_beyond_a_gap_is_understood_by_the_server() -> None:
    with Lab(backends=1, impair=_wires("from the backend to the client", 4)) as lab:
        start_quick(lab)
        expected = large_file(lab, 5_000_000)

        assert download(lab) == expected

        assert count(lab.backend1, "TCPSackRecovery") > 10
        assert count(lab.backend1, "TCPSACKDiscard") < 100  # thousands, if they were not shifted


OPTIONS = {
    "no timestamps": ["net.ipv4.tcp_timestamps=0"],
    "no SACK": ["net.ipv4.tcp_sack=0"],
    "no window scaling": ["net.ipv4.tcp_window_scaling=0"],
    "none of them": ["net.ipv4.tcp_timestamps=0", "net.ipv4.tcp_sack=0",
                     "net.ipv4.tcp_window_scaling=0"],
}


@pytest.mark.parametrize("missing", OPTIONS)
def test_a_client_without_some_options_is_served(pair: Pair, missing: str) -> None:
    with _without(pair.lab.client, missing):
        _check_traffic(pair.lab)


@pytest.mark.parametrize("missing", OPTIONS)
def test_a_server_without_some_options_is_served(missing: str) -> None:
    with Lab(backends=1) as lab:
        lab.backend1.run(["sysctl", "-qw", *OPTIONS[missing]])
        start_quick(lab)

        _check_traffic(lab)


@contextmanager
def _without(node: Node, missing: str) -> Iterator[None]:
    """A node's new connections lack some options within."""
    node.run(["sysctl", "-qw", *OPTIONS[missing]])
    try:
        yield
    finally:
        node.run(["sysctl", "-qw", *(f"{each[:-1]}1" for each in OPTIONS[missing])])


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_small_mss_is_served(side: str) -> None:
    with Lab(backends=1) as lab:
        node, to = (lab.client, VIP) if side == "client" else (lab.backend1, "192.168.33.1")
        node.run(["ip", "route", "add", f"{to}/32", "dev", "eth1", "advmss", "536"])
        start_quick(lab)

        _check_traffic(lab)


@pytest.fixture(scope="module")
def bad() -> Iterator[Lab]:
    """The pair before one server, and a client whose wire is bad."""
    with Lab(backends=1, impair={"client": {**BAD, "seed": 5}}) as lab:
        start_quick(lab)
        yield lab


@pytest.mark.parametrize("missing", OPTIONS)
def test_a_client_without_some_options_is_served_over_a_bad_wire(
    bad: Lab, missing: str, thorough: bool
) -> None:
    with _without(bad.client, missing):
        _check_traffic(bad, 1_000_000 if thorough else 300_000)


def _check_traffic(lab: Lab, length: int = 4_000_000) -> None:
    """A download, an upload, and many requests on a kept connection."""
    expected, sent = large_file(lab, length), os.urandom(length)

    downloaded = download(lab)
    uploaded = upload(lab, "it", sent)
    kept = lab.client.curl(f"{URL}/kept/[1-200]", "--fail", timeout_s=60).splitlines()

    assert downloaded == expected
    assert uploaded == [sent]
    assert [line.split()[1] for line in kept] == [f"/kept/{number}" for number in range(1, 201)]
    assert len({line.split()[2] for line in kept}) == 1
