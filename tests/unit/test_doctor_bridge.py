"""What a bridge's own doctor says, from what it finds."""

from typing import Any

import pytest

from common.cluster.probe import Answer, Listener, OtherSecret, Served
from common.doctor.ask import Replied, Silence
from common.doctor.report import Severity
from packetbridge.doctor import Findings, diagnose

NONCE, KEY, OTHER = bytes(16), bytes((0xAA, 0, 0, 1)), bytes((0xBB, 0, 0, 2))
ANSWER = Answer(NONCE, 0, 0, 64, (KEY,), "0.1.0", "6.18", 1)
SERVED = Served(3, 7, bytes((192, 0, 2, 10)), 80, bytes((192, 0, 2, 20)), 8080, True, True,
                Listener.TCP, room=511)
FINDINGS = Findings(True, 7733, Replied(ANSWER), (SERVED,),
                    {3: ("192.0.2.10:80", "192.0.2.20:8080", 7)}, (KEY,), True)


def served(**changes: Any) -> Findings:
    return FINDINGS._replace(served=(SERVED._replace(**changes),))


N, W, E = Severity


@pytest.mark.parametrize("findings, severity, sentence, remedy", [
    (FINDINGS._replace(is_running=False, replied=Replied(Silence(111))), E,
     "the packetbridge does not run on this host", "systemctl start"),
    (FINDINGS._replace(probe_port=0, replied=Replied(Silence(111))), N,
     "the packetbridge runs, and answers no probes: probe_port is 0", "balancers' doctors"),
    (FINDINGS._replace(replied=Replied(Silence())), W,
     "the packetbridge runs, and does not answer probes at UDP port 7733", "firewall"),
    (FINDINGS._replace(replied=Replied(OtherSecret(NONCE, (OTHER,)))), E,
     "the secret of the bridge that runs is another one than the file's: its keys are bb000002, "
     "the file's aa000001", "reload"),
    (FINDINGS._replace(configured={7: ("192.0.2.10:80", "192.0.2.20:8080", 7)}), W,
     "the bridge that runs has other services than the file, for DSCP 3, 7", "restart"),
    (served(listener=Listener.NONE, elsewhere=bytes((127, 0, 0, 1))), E,
     "192.0.2.20:8080 refuses; 127.0.0.1:8080 is listened at", "start the server"),
    (served(queue=512), E,
     "192.0.2.20:8080 accepts nothing: 512 connections wait for it, and there is room for 511",
     "backlog"),
    (served(adopts=False, listener=Listener.MPTCP, reason="it is"), N,
     "192.0.2.20:8080 listens by MPTCP, so it is spliced", "net.mptcp.enabled=0"),
    (served(adopts=False, reason="the kernel lacks it"), N,
     "192.0.2.10:80 is spliced, so the fast engine translates every packet: the kernel lacks it",
     "Linux 6.9"),
    (FINDINGS._replace(stealers=(4711,)), E,
     "a packet socket for IPv4 alone keeps connections from being adopted (inode 4711)", "splice"),
    (FINDINGS._replace(is_synchronised=False), N, "nothing keeps this host's clock right", "NTP"),
], ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_a_fault_alone_is_blamed(
    findings: Findings, severity: Severity, sentence: str, remedy: str
) -> None:
    complaints = diagnose(findings)

    assert [(each.severity, each.sentence) for each in complaints] == [(severity, sentence)]
    assert remedy in complaints[0].remedy


@pytest.mark.parametrize("findings", [
    FINDINGS,
    served(adopts=False, reason="as configured")._replace(stealers=(4711,)),
    served(listener=Listener.UNSEEN),
])
def test_what_is_well_is_not_blamed(findings: Findings) -> None:
    assert diagnose(findings) == []
