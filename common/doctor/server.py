"""What both doctors say of a server, and of the way in which a bridge reaches it."""

from collections.abc import Iterator
from ipaddress import IPv4Address

from common.cluster.probe import Listener, Served
from common.doctor.report import Complaint, Severity

AS_CONFIGURED = "as configured"


def refused(served: Served, where: str = "") -> Complaint:
    """Nothing listens. where: whose server it is."""
    elsewhere = ""
    if any(served.elsewhere):
        elsewhere = f"; {IPv4Address(served.elsewhere)}:{served.server_port} is listened at"
    return Complaint(Severity.ERROR, f"{served.server_end} refuses{_in_brackets(where)}{elsewhere}",
                     "start the server, or let it listen where the bridge's `server` says")


def hangs(served: Served, where: str = "") -> Complaint | None:
    """Its accept queue is full."""
    if not served.room or served.queue < served.room:
        return None
    return Complaint(Severity.ERROR, f"{served.server_end} accepts nothing{_in_brackets(where)}: "
                     f"{served.queue} connections wait for it, and there is room for "
                     f"{served.room}", "the server hangs, or its backlog is too small",
                     f"{served.server_end} accepts nothing{_in_brackets(where)}")


def not_adopted(served: Served, where: str = "") -> Iterator[Complaint]:
    """What it costs that connections are not adopted, and why they are not."""
    if served.adopts or served.reason.startswith(AS_CONFIGURED):
        return
    if served.listener is Listener.MPTCP:
        yield Complaint(Severity.NOTE, f"{served.server_end} listens by MPTCP, so it is spliced",
                        "sysctl net.mptcp.enabled=0, or GODEBUG=multipathtcp=0 for a server in Go; "
                        "then restart server and bridge")
        return
    engine = "the fast engine translates every packet" if served.is_fast else \
        "every packet passes the portable engine"
    yield Complaint(
        Severity.NOTE, f"{served.vip_end} is spliced{_in_brackets(where)}, so {engine}: "
        f"{served.reason}",
        "adopted connections cost a bridge nothing: Linux 6.9 and later can, where the server "
        "listens on the bridge's host, and not by MPTCP")


def _in_brackets(where: str) -> str:
    return where and f" ({where})"
