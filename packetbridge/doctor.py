"""What is wrong on a server's host: the bridge that runs there is asked, and its host looked at."""

import socket
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from common.cluster import probe
from common.cluster.probe import Answer, Listener, OtherSecret, Served
from common.cluster.secrets import Secrets
from common.doctor import server
from common.doctor.ask import Asker, Replied, Silence
from common.doctor.host import clock_is_synchronised
from common.doctor.report import Complaint, Severity
from common.engine import lock
from packetbridge.config import Config

_PACKET_SOCKETS = Path("/proc/net/packet")
_IPV4_ALONE = "0800"


class Findings(NamedTuple):
    """What is found on this host.

    is_running: whether a bridge has the VIPs. configured: by DSCP, what the file says of a service:
    VIP, server, wscale. keys: fingerprints of the file's. stealers: inodes of packet sockets for
    IPv4 alone at the interface.
    """

    is_running: bool
    probe_port: int
    replied: Replied
    served: tuple[Served, ...]
    configured: dict[int, tuple[str, str, int]]
    keys: tuple[bytes, ...]
    is_synchronised: bool
    stealers: tuple[int, ...] = ()


def examine(config: Config, address: IPv4Address, secrets: Secrets) -> Findings:
    """Look. address: the bridge's own."""
    asker = Asker(str(address), config.probe_port or 1, secrets.current)
    replied = asker.ask()
    served = asker.services(replied.reply) if isinstance(replied.reply, Answer) else ()
    return Findings(
        any(lock.is_taken(f"packetbridge/vip/{service.vip}:{service.port}")
            for service in config.services),
        config.probe_port, replied, served,
        {service.dscp: (f"{service.vip}:{service.port}",
                        f"{service.server}:{service.server_port}", service.wscale)
         for service in config.services},
        probe.key_ids(secrets), clock_is_synchronised(), tuple(_stealers(config.interface)))


def diagnose(findings: Findings) -> list[Complaint]:
    """The causes of all that is not well. Pure."""
    return [*_of_host(findings), *_of_bridge(findings)]


def _of_host(findings: Findings) -> Iterator[Complaint]:
    if not findings.is_synchronised:
        yield Complaint(Severity.NOTE, "nothing keeps this host's clock right",
                        "cookies need clocks that agree: let NTP run (timedatectl set-ntp true)")
    if findings.stealers and any(served.adopts for served in findings.served):
        shown = ", ".join(map(str, findings.stealers))
        yield Complaint(Severity.ERROR, "a packet socket for IPv4 alone keeps connections from "
                        f"being adopted (inode {shown})",
                        "end its program (ss -0 -p -e shows whose it is), or set mode = "
                        "\"splice\"")


def _of_bridge(findings: Findings) -> Iterator[Complaint]:
    reply = findings.replied.reply
    if not findings.is_running:
        yield Complaint(Severity.ERROR, "the packetbridge does not run on this host",
                        "systemctl start l3dsr-packetbridge; journalctl -u l3dsr-packetbridge says "
                        "why it ended")
    elif not findings.probe_port:
        yield Complaint(Severity.NOTE, "the packetbridge runs, and answers no probes: probe_port "
                        "is 0", "without them balancers' doctors see less")
    elif isinstance(reply, Silence):
        yield Complaint(Severity.WARNING, "the packetbridge runs, and does not answer probes at "
                        f"UDP port {findings.probe_port}",
                        "its log says whether another program has the port; or let it in in this "
                        "host's firewall")
    elif isinstance(reply, OtherSecret):
        yield Complaint(Severity.ERROR, "the secret of the bridge that runs is another one than "
                        f"the file's: its keys are {_shown(reply.keys)}, the file's "
                        f"{_shown(findings.keys)}", "systemctl reload l3dsr-packetbridge")
    else:
        yield from _of_services(findings)


def _of_services(findings: Findings) -> Iterator[Complaint]:
    running = {served.dscp: (served.vip_end, served.server_end, served.wscale)
               for served in findings.served}
    if running != findings.configured:
        dscps = sorted(number for number in {*running, *findings.configured}
                       if running.get(number) != findings.configured.get(number))
        yield Complaint(Severity.WARNING, "the bridge that runs has other services than the file, "
                        f"for DSCP {', '.join(map(str, dscps))}",
                        "systemctl restart l3dsr-packetbridge")
    for served in findings.served:
        hangs = server.hangs(served)
        if served.listener is Listener.NONE:
            yield server.refused(served)
        elif hangs:
            yield hangs
        else:
            yield from server.not_adopted(served)


def _stealers(interface: str) -> Iterator[int]:
    """The inodes of packet sockets for IPv4 alone that hear an interface."""
    here = {"0", str(socket.if_nametoindex(interface))}
    for line in _PACKET_SOCKETS.read_text().splitlines()[1:]:
        words = line.split()
        if len(words) > 8 and words[3] == _IPV4_ALONE and words[4] in here:
            yield int(words[8])


def _shown(keys: Sequence[bytes]) -> str:
    return " and ".join(key.hex() for key in keys)
