"""The doctor names the fault that is made, with a remedy, and blames nothing else, and so does the
balancer's log.

One network for all: each fault is made and undone. The health checks, which take the same way, find
the backend down for the same reason, as far as they can tell it.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pytest
from faults import (
    MPTCP,
    SERVER_PORT,
    Site,
    bleached,
    causes,
    clock_ahead,
    clock_drifts,
    doctor,
    host_down,
    listen,
    listens_elsewhere,
    no_bridge,
    no_route,
    nothing,
    other_dscp,
    other_secret,
    other_vip,
    other_wscale,
    packet_socket,
    policed,
    rule,
    server_down,
    server_hangs,
    servers_port_only,
    stateful_router,
    strict_sources,
    syn_only,
    tcp_bleached,
    tracked,
    vip_dropped_on_the_way_back,
    vip_elsewhere,
)

from lab.node import wait_until
from lab.topology import DSCP, FAR_CLIENT, PAIRS, VIP, Lab, program

SETTLED_S = 30.0  # until a fault that was undone is forgotten
SAID_S = 30.0  # until the log says what is wrong; usually that takes two or three seconds


def complaints(report: dict[str, Any], notes: bool = False) -> list[str]:
    """The sentences. notes: with those that cost something and break nothing."""
    return [each["sentence"] for each in report["complaints"]
            if notes or each["severity"] != "note"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Lab(balancers=2, hub=True, pair="auto") as lab:
        made = Site(lab)
        wait_until(made.is_well, SETTLED_S, "checks are passed")
        yield made


class Case(NamedTuple):
    """A fault, what the doctor and the log say, and what the health checks' log does.

    meanwhile: what the log says of the moment in which it was made.
    """

    fault: Callable[[Site], AbstractContextManager[None]]
    sentence: str
    remedy: str
    log: str = ""
    meanwhile: str = ""


REMARKED = "backend 2: the bridge saw DSCP 0, not 3: a device on the way changes it"
NOT_ACCEPTED = "opened, never accepted: the host of backend 2 lets no handoff in"
SILENT = "backend 2 of web .* is down: it is silent"
TO_FAR = r"192\.168\.35\.21"
NO_BRIDGE = rf"no bridge at {TO_FAR} \(backend 2; the host answers ping\)"
REFUSES = r"192\.168\.35\.31:8080 refuses \(backend 2\)"
CASES = {
    "DSCP is bleached": Case(bleached, REMARKED, "trust DSCP", SILENT),
    "DSCP of TCP is bleached": Case(tcp_bleached, REMARKED, "trust DSCP", SILENT),
    "packets with the DSCP are dropped": Case(
        policed, "packets with DSCP 3 do not arrive at backend 2, others do: a device on the way "
        "drops them", "another one", SILENT),
    "the bridge has another DSCP": Case(
        other_dscp, rf"the bridge of backend 2 has no service for DSCP 3; it has {VIP}:80 "
        r"\(DSCP 7\)", "dscp = 3 in packetbridge.toml", "backend 2 of web .* is down", NO_BRIDGE),
    "the bridge has another VIP": Case(
        other_vip, rf"the bridge of backend 2 has vip {VIP}:81 for DSCP 3, not {VIP}:80",
        "has to be the same", SILENT, NO_BRIDGE),
    "the bridge has another window scale": Case(
        other_wscale, "the bridge of backend 2 has wscale 5 for DSCP 3, not 7",
        "has to be the same", "", NO_BRIDGE),
    "the bridge does not run": Case(
        no_bridge, NO_BRIDGE, "start the packetbridge", SILENT),
    "the host is down": Case(
        host_down, rf"no bridge at {TO_FAR} \(backend 2; the host does not answer ping\)",
        "is the host on", SILENT),
    "the secret is another one": Case(
        other_secret, "the secret of backend 2's bridge is another one: its keys are [0-9a-f]{8}, "
        "this host's [0-9a-f]{8}", "copy the secret's file", f"{SILENT}.* another secret",
        NO_BRIDGE),
    "the clocks are apart": Case(
        clock_ahead, "the clock of backend 2 is 200 s ahead; the bound is 64 s", "NTP", SILENT,
        NO_BRIDGE),
    "the clocks drift": Case(
        clock_drifts, "the clock of backend 2 is 20 s ahead", "NTP", "", NO_BRIDGE),
    "the server is down": Case(
        server_down, REFUSES, "start the server",
        "backend 2 of web .* is down: it refuses the connection"),
    "the server listens elsewhere": Case(
        listens_elsewhere, r"192\.168\.35\.31:8080 refuses \(backend 2\); 127\.0\.0\.1:8080 is "
        "listened at", "listen where", "backend 2 of web .* is down: it refuses the connection",
        REFUSES),
    "the server hangs": Case(
        server_hangs, r"192\.168\.35\.31:8080 accepts nothing \(backend 2\): 2 connections wait "
        "for it, and there is room for 1", "its backlog is too small", SILENT, REFUSES),
    "the host lets the server's port in alone": Case(
        servers_port_only, NOT_ACCEPTED, f"let {VIP}:80 in without connection tracking", SILENT),
    "the host lets SYNs in alone": Case(syn_only, NOT_ACCEPTED, f"let {VIP}:80 in", SILENT),
    "the host tracks connections": Case(tracked, NOT_ACCEPTED, f"let {VIP}:80 in", SILENT),
    "a router checks sources": Case(
        strict_sources, rf"handoffs with a client's address \({FAR_CLIENT}\) do not arrive at "
        "backend [12], probes with the balancer's do: source checks on the way", "rp_filter"),
    "a router tracks connections": Case(
        stateful_router, "handoffs do not arrive at backend 2, probes do: a stateful firewall or "
        "source checks on the way", "without connection tracking", SILENT),
    "a router drops answers from the VIP": Case(
        vip_dropped_on_the_way_back, rf"backend [12] of web has accepted the connection, and its "
        f"answer from {VIP}:80 does not come back: source checks on the way back",
        "packets from the VIP", SILENT),
    "the VIP is on another host": Case(
        vip_elsewhere, rf"{VIP} is also at ([0-9a-f]{{2}}:){{5}}[0-9a-f]{{2}}", "on no other host",
        rf"VIP on another host: {VIP} is also at ([0-9a-f]{{2}}:){{5}}"),
    "there is no route": Case(
        no_route, rf"there is no way to backend 2, {TO_FAR}: No route to host \(EHOSTUNREACH\)",
        "ip route get", "backend 2 of web .* is down: it cannot be reached|" + SILENT),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fault_is_named_and_nothing_else_is_blamed(site: Site, case: Case) -> None:
    wait_until(site.is_well, SETTLED_S, "all was well before")
    said_before = len(site.balancer.log())

    def log() -> str:
        return site.balancer.log()[said_before:]

    with case.fault(site):
        report = site.examine("--client", FAR_CLIENT)
        wait_until(lambda: bool(re.search(case.log, log())), SAID_S, case.log)
        if case.fault is not vip_elsewhere:  # whose line is not the doctor's
            wait_until(lambda: any(re.fullmatch(case.sentence, said) for said, _ in causes(log())),
                       SAID_S, f"{case.sentence} in the log")
        said_meanwhile = causes(log())

    sentences = complaints(report)
    assert sentences
    for sentence in sentences:
        assert re.fullmatch(case.sentence, sentence)
    remedies = [each["remedy"] for each in report["complaints"] if each["severity"] != "note"]
    assert all(case.remedy in remedy for remedy in remedies)
    for sentence, remedy in said_meanwhile:
        if not re.fullmatch(case.meanwhile, sentence):
            assert re.fullmatch(case.sentence, sentence)
            assert case.remedy in remedy


def test_nothing_is_blamed_where_all_is_well(site: Site) -> None:
    wait_until(site.is_well, SETTLED_S, "all was well before")

    report = site.examine("--client", FAR_CLIENT)

    assert report["ok"]
    assert complaints(report) == []
    wait_until(lambda: not site.far.run(["ss", "-0", "-H"]), SETTLED_S, "the bridge looks no more")
    generic = "the program runs at generic XDP on eth1: it is a veth"
    assert generic in complaints(report, True)
    site.balancer.wait_for(f"INFO doctor: {generic}; remedy: each packet", SAID_S)


def test_a_narrow_path_is_noted_with_what_it_means_for_clients(site: Site) -> None:
    site.lab.router.run(["ip", "link", "set", "eth3", "mtu", "1400"])
    sentences = [f"the path to backend {number} carries 1400 octets; MSS is 1360 now"
                 for number in (1, 2)]
    try:
        report = site.examine()
        for sentence in sentences:
            site.balancer.wait_for(f"INFO doctor: {sentence}; remedy: ", SAID_S)
    finally:
        site.lab.router.run(["ip", "link", "set", "eth3", "mtu", "1500"])

    assert report["ok"]
    assert set(sentences) <= set(complaints(report, True))


@pytest.mark.parametrize("old, new, sentence", [
    ("port = 80", "port = 81", f"the bridge of backend {{}} has vip {VIP}:80 for DSCP 3, not "
     f"{VIP}:81"),
    ("dscp = 3", "dscp = 3\nwscale = 5", "the bridge of backend {} has wscale 7 for DSCP 3, not 5"),
], ids=["VIP", "wscale"])
def test_what_differs_between_balancer_and_bridges_is_named(
    site: Site, old: str, new: str, sentence: str
) -> None:
    other = site.file.with_name("other.toml")
    other.write_text(site.file.read_text().replace(old, new))

    report = doctor(site.lab.balancer, "balancer", "--config", str(other))

    assert complaints(report) == [sentence.format(1), sentence.format(2)]


def test_a_listener_by_mptcp_is_noted_with_what_ends_that(site: Site) -> None:
    site.server.stop()
    other = listen(site.far, MPTCP, site.far.server)
    site.bridge.stop()
    reports: list[dict[str, Any]] = []

    def are_well() -> bool:  # a server and a bridge have just begun
        reports[:] = site.examine(), site.examine_far()
        return all(each["ok"] for each in reports)

    try:
        site.bridge = site.start_bridge(site.far)
        wait_until(are_well, SETTLED_S, "nothing is wrong")
        site.balancer.wait_for("INFO doctor: .* listens by MPTCP, so it is spliced; remedy: sysctl",
                               SAID_S)
    finally:
        other.stop()
        site.server = site.lab.start_nginx(site.far, port=SERVER_PORT)
        site.bridge.stop()
        site.bridge = site.start_bridge(site.far)

    for found in reports:
        note = next(each for each in found["complaints"] if "MPTCP" in each["sentence"])
        assert note["sentence"] == "192.168.35.31:8080 listens by MPTCP, so it is spliced"
        assert "net.mptcp.enabled=0, or GODEBUG=multipathtcp=0" in note["remedy"]


def test_it_works_without_a_balancer_that_runs(site: Site) -> None:
    site.balancer.stop()
    try:
        report = site.examine("--client", FAR_CLIENT)
    finally:
        site.balancer = site.lab.start_balancer("--config", str(site.file), defaults=False)

    assert report["ok"]
    assert "the balancer does not run on this host" in complaints(report, True)


def test_what_is_said_for_people_has_each_remedy_below_its_sentence(site: Site) -> None:
    with server_down(site):
        done = site.lab.balancer.popen(
            [*program("balancer"), "doctor", "--config", str(site.file)], stdout=-1, text=True)
        out, _ = done.communicate(timeout=30)

    assert done.returncode == 1
    first, second, third, *_ = out.splitlines()
    assert first == "services: 1, bridges: 2: not well"
    assert second == "error: 192.168.35.31:8080 refuses (backend 2)"
    assert third == "    start the server, or let it listen where the bridge's `server` says"


# --- the bridge's own doctor ---


@pytest.mark.parametrize("fault, sentence", [
    (nothing, ""),
    (no_bridge, "the packetbridge does not run on this host"),
    (listens_elsewhere, r"192\.168\.35\.31:8080 refuses; 127\.0\.0\.1:8080 is listened at"),
    (packet_socket, r"a packet socket for IPv4 alone keeps connections from being adopted "
     r"\(inode \d+\)"),
], ids=["all is well", "it does not run", "listens elsewhere", "packet socket"])
def test_a_bridges_own_doctor_names_what_is_wrong_there(
    site: Site, fault: Callable[[Site], AbstractContextManager[None]], sentence: str
) -> None:
    with fault(site):
        report = site.examine_far()

    assert report["ok"] is not bool(sentence)
    assert [bool(re.fullmatch(sentence, each)) for each in complaints(report)] == \
        [True] * bool(sentence)


# --- the other engines and modes ---


@pytest.mark.parametrize("kind", ["portable", "splice"])
def test_where_bridges_splice_it_is_the_servers_port_that_has_to_be_let_in(kind: str) -> None:
    with Lab(backends=1, pair=kind) as lab:
        lab.start_nginx(lab.backends[0], port=SERVER_PORT)
        server = f"{lab.backends[0].server}:{SERVER_PORT}"
        lab.start_bridge(lab.backends[0], "--vip", f"{DSCP}={VIP}:80", "--server", server,
                         defaults=False)
        lab.start_balancer()
        flags = ["--vip", VIP, "--backend", lab.backends[0].address, "--interface", "eth1",
                 "--secret-file", str(lab.secret_file), *PAIRS[kind]["balancer"]]

        well = doctor(lab.balancer, "balancer", *flags)
        with rule(lab.backend1, "INPUT", "-p", "tcp", "--dport", str(SERVER_PORT), "-j", "DROP"):
            dropped = doctor(lab.balancer, "balancer", *flags)
        lab.backends[0].processes[0].stop()
        refused = doctor(lab.balancer, "balancer", *flags)

    assert complaints(well) == []
    assert complaints(dropped) == [NOT_ACCEPTED.replace("2", "1")]
    assert f"let {server} in" in dropped["complaints"][0]["remedy"]
    assert complaints(refused) == [f"{server} refuses (backend 1)"]
