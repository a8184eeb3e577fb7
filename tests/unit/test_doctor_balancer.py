"""From findings to causes: each fault alone is blamed, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from balancer.doctor.diagnose import diagnose
from balancer.doctor.findings import Findings, Handoff, OfBridge, OfHost, OfService
from common.cluster.probe import (
    Answer,
    Listener,
    OtherSecret,
    OtherTime,
    Served,
    Sighting,
    Socket,
)
from common.doctor.ask import Replied, Silence
from common.doctor.report import Complaint, Severity, is_well

NONCE, KEY, OTHER = bytes(16), bytes((0xAA, 0, 0, 1)), bytes((0xBB, 0, 0, 2))
VIP, SERVER = bytes((192, 0, 2, 10)), bytes((192, 0, 2, 20))
HOST = OfHost("eth0", True, "auto", "native", "", "", False, True, (), (KEY,), "203.0.113.1")
SERVED = Served(3, 7, VIP, 80, SERVER, 8080, True, True, Listener.TCP, room=511)
ARRIVED = Sighting(1, 3 << 2, 63)
TAKEN = Handoff(True, True, False, "answers with status 200", client=ARRIVED)
SILENT = Handoff(words="is silent for 0.9 s", own=ARRIVED)


def answer(tos: int = 0) -> Answer:
    return Answer(NONCE, 0, tos, 63, (KEY,), "0.1.0", "6.18", 1)


SERVICE = OfService("web", 2, "192.0.2.10:80", 3, 7, Replied(answer(3 << 2)), TAKEN)
BRIDGE = OfBridge("192.0.2.21", 7733, Replied(answer()), False, (SERVED,), (SERVICE,), 1500, 1500,
                  1460)


def host(**changes: Any) -> Findings:
    return Findings(HOST._replace(**changes), (BRIDGE,))


def bridge(**changes: Any) -> Findings:
    return Findings(HOST, (BRIDGE._replace(**changes),))


def service(served: dict[str, Any] | None = None, **changes: Any) -> Findings:
    return bridge(served=(SERVED._replace(**served or {}),),
                  services=(SERVICE._replace(**changes),))


def silence(code: int = 0, is_local: bool = False, **changes: Any) -> Findings:
    reply = Replied(Silence(code, is_local))
    no_handoff = SERVICE._replace(tagged=reply, handoff=Handoff(words="is silent"))
    return bridge(**{"plain": reply, "served": (), "services": (no_handoff,)} | changes)


N, W, E = Severity
TABLE: list[tuple[Findings, Severity, str, str]] = [
    # fault, severity, sentence, words of the remedy
    (service(tagged=Replied(answer(0))), E,
     "backend 2: the bridge saw DSCP 0, not 3: a device on the way changes it", "trust DSCP"),
    (service(handoff=SILENT._replace(own=Sighting(3, 0, 63))), E,
     "backend 2: the bridge saw DSCP 0, not 3: a device on the way changes it", "trust DSCP"),
    (service(tagged=Replied(Silence())), E,
     "packets with DSCP 3 do not arrive at backend 2, others do: a device on the way drops them",
     "another one"),
    (service({"dscp": 7}, handoff=None), E,
     "the bridge of backend 2 has no service for DSCP 3; it has 192.0.2.10:80 (DSCP 7)",
     "dscp = 3"),
    (bridge(served=(), services=(SERVICE._replace(handoff=None),)), E,
     "the bridge of backend 2 has no service for DSCP 3; it has none", "dscp = 3"),
    (service({"port": 81}, handoff=SILENT), E,
     "the bridge of backend 2 has vip 192.0.2.10:81 for DSCP 3, not 192.0.2.10:80", "the same"),
    (service({"wscale": 5}), E,
     "the bridge of backend 2 has wscale 5 for DSCP 3, not 7", "the same"),
    (silence(pings=True), E,
     "no bridge at 192.0.2.21 (backend 2; the host answers ping)", "UDP port 7733"),
    (silence(111, pings=True), E,
     "no bridge at 192.0.2.21 (backend 2; the host answers ping)", "start the packetbridge"),
    (silence(113), E,
     "no bridge at 192.0.2.21 (backend 2; the host does not answer ping)", "is the host on"),
    (silence(pings=True, services=(SERVICE,)), W,
     "backend 2 takes connections, but does not answer probes", "UDP port 7733"),
    (bridge(plain=Replied(OtherSecret(NONCE, (OTHER, KEY)))), E,
     "the secret of backend 2's bridge is another one: its keys are bb000002 and aa000001, this "
     "host's aa000001", "copy the secret's file"),
    (bridge(plain=Replied(OtherTime(NONCE, 0), 200_200)), E,
     "the clock of backend 2 is 200 s ahead; the bound is 64 s", "NTP"),
    (bridge(plain=Replied(answer(), -40_000), services=(SERVICE._replace(handoff=SILENT),)), E,
     "the clock of backend 2 is 40 s behind; the bound is 16 s", "NTP"),
    (bridge(plain=Replied(answer(), 9_000)), W, "the clock of backend 2 is 9 s ahead", "NTP"),
    (service(handoff=Handoff(is_refused=True, words="refuses the connection")), E,
     "192.0.2.20:8080 refuses (backend 2)", "start the server"),
    (service({"listener": Listener.NONE, "elsewhere": bytes((127, 0, 0, 1))}, handoff=SILENT), E,
     "192.0.2.20:8080 refuses (backend 2); 127.0.0.1:8080 is listened at", "let it listen where"),
    (service({"queue": 6, "room": 5}, handoff=SILENT), E,
     "192.0.2.20:8080 accepts nothing (backend 2): 6 connections wait for it, and there is room "
     "for 5", "the server hangs"),
    (service(handoff=Handoff(True, False, False, "answers with status 503")), E,
     "backend 2 of web answers with status 503", "[service.check]"),
    (service({"adopts": False, "listener": Listener.MPTCP, "reason": "it is"}), N,
     "192.0.2.20:8080 listens by MPTCP, so it is spliced", "GODEBUG=multipathtcp=0"),
    (service(handoff=SILENT), E,
     "opened, never accepted: the host of backend 2 lets no handoff in",
     "let 192.0.2.10:80 in without connection tracking"),
    (service({"adopts": False, "reason": "as configured"}, handoff=SILENT), E,
     "opened, never accepted: the host of backend 2 lets no handoff in",
     "let 192.0.2.20:8080 in without connection tracking"),
    (service(handoff=SILENT._replace(own=ARRIVED._replace(socket=Socket.OPEN))), E,
     "backend 2 of web has accepted the connection, and its answer from 192.0.2.10:80 does not "
     "come back: source checks on the way back", "from the VIP"),
    (service(handoff=SILENT._replace(own=Sighting())), E,
     "handoffs do not arrive at backend 2, probes do: a stateful firewall or source checks on the "
     "way", "without connection tracking"),
    (service(handoff=TAKEN._replace(client=Sighting())), E,
     "handoffs with a client's address (203.0.113.1) do not arrive at backend 2, probes with the "
     "balancer's do: source checks on the way", "rp_filter"),
    (bridge(path_mtu=1400, mss=1360), N,
     "the path to backend 2 carries 1400 octets; MSS is 1360 now", "1500"),
    (silence(101, True), E,
     "there is no way to backend 2, 192.0.2.21: Network is unreachable (ENETUNREACH)",
     "ip route get 192.0.2.21"),
    (service({"adopts": False, "reason": "the kernel lacks bpf_sk_assign_tcp_reqsk"}), N,
     "192.0.2.10:80 is spliced (backend 2), so the fast engine translates every packet: the kernel "
     "lacks bpf_sk_assign_tcp_reqsk", "Linux 6.9"),
    (service({"adopts": False, "is_fast": False, "reason": "eth0 is not Ethernet"}), N,
     "192.0.2.10:80 is spliced (backend 2), so every packet passes the portable engine: eth0 is "
     "not Ethernet", "Linux 6.9"),
    (host(others=(("192.0.2.10", "52:54:00:00:00:01"),)), E,
     "192.0.2.10 is also at 52:54:00:00:00:01", "no other host"),
    (host(xdp="generic", why_generic="it is a veth"), N,
     "the program runs at generic XDP on eth0: it is a veth", "native XDP"),
    (host(xdp="", why_portable="eth0 is not Ethernet"), N,
     "every packet passes the portable engine: eth0 is not Ethernet", "engine = \"portable\""),
    (host(joins_packets=True), W,
     "eth0 joins packets (large receive offload) before the program sees them",
     "ethtool -K eth0 lro off"),
    (host(is_synchronised=False), N, "nothing keeps this host's clock right", "NTP"),
    (host(is_running=False, xdp=""), N, "the balancer does not run on this host", "systemctl"),
]


@pytest.mark.parametrize("findings, severity, sentence, remedy", TABLE,
                         ids=[row[2][:60] for row in TABLE])
def test_a_fault_alone_is_blamed(
    findings: Findings, severity: Severity, sentence: str, remedy: str
) -> None:
    complaints = diagnose(findings)

    assert [(each.severity, each.sentence) for each in complaints] == [(severity, sentence)]
    assert remedy in complaints[0].remedy


@pytest.mark.parametrize("findings", [
    Findings(HOST, (BRIDGE,)),
    host(engine="portable", xdp=""),
    service({"adopts": False, "reason": "as configured"}),
    service(handoff=TAKEN._replace(client=None)),  # the bridge's answer to that was lost
], ids=["all", "portable as configured", "splice as configured", "no word of a client's"])
def test_what_is_well_is_not_blamed(findings: Findings) -> None:
    assert diagnose(findings) == []


def test_a_server_is_blamed_also_where_its_bridge_answers_no_probes() -> None:
    refused = SERVICE._replace(handoff=Handoff(is_refused=True, words="refuses the connection"))

    assert [each.sentence for each in diagnose(silence(services=(refused,)))] == [
        "backend 2 takes connections, but does not answer probes",
        "backend 2 of web refuses the connection"]


def test_a_bridge_with_several_ids_has_its_address_for_a_name() -> None:
    found = bridge(services=(SERVICE, SERVICE._replace(backend=5, name="tls", handoff=SILENT)))

    assert [each.sentence for each in diagnose(found)] == [
        "opened, never accepted: the host of the bridge at 192.0.2.21 lets no handoff in"]


@pytest.mark.parametrize("made, expected", [
    (list, True), (lambda: [Complaint(N, "", "")], True),
    (lambda: [Complaint(N, "", ""), Complaint(W, "", "")], False),
    (lambda: [Complaint(E, "", "")], False),
])
def test_notes_do_not_matter(made: Callable[[], list[Complaint]], expected: bool) -> None:
    assert is_well(made()) is expected
