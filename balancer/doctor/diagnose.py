"""From what was found to causes. Pure.

For each bridge the ways are looked at in the order in which they depend on each other (route, host,
bridge, secret, clock, DSCP, service, handoff), and the first that is broken is the only one that is
blamed: what comes after it cannot be well.
"""

from collections.abc import Iterator
from itertools import chain

from balancer.doctor.findings import Asker, Findings, Handoff, OfBridge, OfHost, OfService
from common.cluster.probe import Answer, Listener, OtherSecret, OtherTime, Served, Socket
from common.doctor import server
from common.doctor.ask import Silence
from common.doctor.report import Complaint, Severity
from common.encap import dscp

NOTE, WARNING, ERROR = Severity.NOTE, Severity.WARNING, Severity.ERROR
AHEAD_S, BEHIND_S, DRIFT_S = 64, 16, 5  # an epoch; what cookies allow for; what NTP never leaves
_CLOCKS = "let both hosts take the time from the same NTP servers (chronyc tracking)"


def diagnose(findings: Findings) -> list[Complaint]:
    """The causes of all that is not well."""
    return [*of_host(findings.host),
            *chain.from_iterable(of_bridge(bridge, findings.host.asker)
                                 for bridge in findings.bridges)]


# --- this host ---


def of_host(host: OfHost) -> Iterator[Complaint]:
    """The causes that are on this host."""
    for vip, mac in host.others:
        yield Complaint(ERROR, f"{vip} is also at {mac}",
                        "the VIP must be on no other host of this network: find the one with that "
                        f"Ethernet address, and take it off there (ip address del {vip} dev …)")
    if not host.is_running:
        yield Complaint(NOTE, "the balancer does not run on this host",
                        "what is said here is of the way to the bridges: systemctl start "
                        "l3dsr-balancer")
    elif host.engine != "portable" and not host.xdp:
        yield Complaint(NOTE, "every packet passes the portable engine: "
                        f"{host.why_portable or 'the line with `ready` says why'}",
                        "that is Python, with a fraction of the fast one's packets a second; make "
                        "the fast one possible, or say so with engine = \"portable\"")
    elif host.xdp == "generic":
        yield Complaint(NOTE, f"the program runs at generic XDP on {host.interface}"
                        f"{host.why_generic and ': '}{host.why_generic}",
                        "each packet becomes a socket buffer before the program has it; a driver "
                        "with native XDP saves the time for that")
    if host.joins_packets:
        yield Complaint(WARNING, f"{host.interface} joins packets (large receive offload) before "
                        "the program sees them", f"ethtool -K {host.interface} lro off")
    if not host.is_synchronised:
        yield Complaint(NOTE, "nothing keeps this host's clock right",
                        "cookies need clocks that agree: let NTP run (timedatectl set-ntp true)")


# --- a bridge ---


def of_bridge(bridge: OfBridge, asker: Asker) -> Iterator[Complaint]:
    """The causes that are at a bridge, or on the way there."""
    reply = bridge.plain.reply
    if isinstance(reply, Silence):
        yield from _silent(bridge, reply)
        return
    if isinstance(reply, OtherSecret):
        yield Complaint(
            ERROR, f"the secret of {_possessive(bridge)} is another one: its keys are "
            f"{_shown(reply.keys)}, this host's {_shown(asker.keys)}",
            "copy the secret's file to every bridge, then to every balancer, and reload them: "
            "kill -HUP, or systemctl reload")
        return
    clock = _clock(bridge)
    if clock:
        yield clock
        if clock.severity is ERROR:
            return
    if 0 < bridge.path_mtu < bridge.link_mtu:
        yield Complaint(NOTE, f"the path to {bridge.name} carries {bridge.path_mtu} octets; "
                        f"MSS is {bridge.mss} now",
                        f"all services with that backend have the smaller segments; widen the "
                        f"links on the way to {bridge.link_mtu} to have larger ones")
    lost = [each for each in bridge.services if isinstance(each.tagged.reply, Silence)]
    if lost:
        names = ", ".join(str(each.dscp) for each in lost)
        yield Complaint(ERROR, f"packets with DSCP {names} do not arrive at {bridge.name}, others "
                        "do: a device on the way drops them",
                        "let the routers and switches on the way pass that DSCP, or give the "
                        "service another one here and at its bridges")
    for service in bridge.services:
        if service not in lost:
            yield from _of_service(service, bridge, asker)


def _silent(bridge: OfBridge, silence: Silence) -> Iterator[Complaint]:
    if silence.is_local:
        yield Complaint(ERROR, f"there is no way to {bridge.name}, {bridge.address}: "
                        f"{silence.words}",
                        f"ip route get {bridge.address} says the same; give this host a route")
        return
    handoffs = [service.handoff for service in bridge.services if service.handoff]
    if any(handoff.is_taken or handoff.is_refused for handoff in handoffs):
        yield Complaint(WARNING, f"{bridge.name} takes connections, but does not answer probes",
                        f"let UDP port {bridge.probe_port} to {bridge.address} through; or its "
                        "probe_port is another one; or it is of a release before this one")
        for service in bridge.services:
            if service.handoff and not service.handoff.is_passed:
                yield _unwell(service, service.handoff, bridge)
        return
    answers = "answers ping" if bridge.pings else "does not answer ping"
    remedy = (
        "start the packetbridge there (systemctl status l3dsr-packetbridge); where it runs, let "
        f"UDP port {bridge.probe_port} through there" if bridge.pings else
        f"is the host on, and {bridge.address} its address? (ip address; ip neigh)")
    yield Complaint(ERROR, f"no bridge at {bridge.address} ({bridge.name}; the host {answers})",
                    remedy)


def _clock(bridge: OfBridge) -> Complaint | None:
    ahead_s = bridge.plain.ahead_ms / 1000
    apart = (f"the clock of {bridge.name} is {abs(ahead_s):.0f} s "
             f"{'ahead' if ahead_s > 0 else 'behind'}")
    if isinstance(bridge.plain.reply, OtherTime) or not -BEHIND_S <= ahead_s <= AHEAD_S:
        bound_s = AHEAD_S if ahead_s > 0 else BEHIND_S
        return Complaint(ERROR, f"{apart}; the bound is {bound_s} s", _CLOCKS,
                         f"{bridge.name}'s clock, beyond the bound")
    if abs(ahead_s) > DRIFT_S:
        return Complaint(WARNING, apart, _CLOCKS, f"{bridge.name}'s clock")
    return None


# --- a service there ---


def _of_service(service: OfService, bridge: OfBridge, asker: Asker) -> Iterator[Complaint]:
    reply = service.tagged.reply
    seen = dscp.of_tos(reply.tos) if isinstance(reply, Answer) else service.dscp
    if seen != service.dscp:
        yield _remarked(service, bridge, seen)
        return
    served = next((each for each in bridge.served if each.dscp == service.dscp), None)
    if served is None:
        has = ", ".join(f"{each.vip_end} (DSCP {each.dscp})" for each in bridge.served) or "none"
        yield Complaint(ERROR, f"the bridge of {bridge.name} has no service for DSCP "
                        f"{service.dscp}; it has {has}",
                        f"give it {service.vip_end} with dscp = {service.dscp} in "
                        "packetbridge.toml, and restart it")
        return
    for key, here, there in (("vip", service.vip_end, served.vip_end),
                             ("wscale", service.wscale, served.wscale)):
        if here != there:
            yield Complaint(ERROR, f"the bridge of {bridge.name} has {key} {there} for DSCP "
                            f"{service.dscp}, not {here}",
                            f"{key} has to be the same at the balancers and in the bridge's "
                            "packetbridge.toml")
            return
    broken = _handoff(service, served, bridge, asker)
    if broken:
        yield broken
    else:
        yield from server.not_adopted(served, bridge.name)


def _remarked(service: OfService, bridge: OfBridge, seen: int) -> Complaint:
    return Complaint(ERROR, f"{bridge.name}: the bridge saw DSCP {seen}, not {service.dscp}: a "
                     "device on the way changes it",
                     "have the switches and routers on the way trust DSCP from the balancer's "
                     "port (tcpdump -v on each side shows the tos)")


def _handoff(
    service: OfService, served: Served, bridge: OfBridge, asker: Asker
) -> Complaint | None:
    """Why handoffs do not become connections; None: they do."""
    handoff = service.handoff
    if handoff is None:
        return None
    if handoff.is_refused:
        return server.refused(served, bridge.name)
    if handoff.is_taken and not handoff.is_passed:
        return _unwell(service, handoff, bridge)
    if handoff.is_taken:
        if handoff.client is not None and not handoff.client.packets:
            return Complaint(
                ERROR, f"handoffs with a client's address ({asker.client}) do not arrive at "
                f"{bridge.name}, probes with the balancer's do: source checks on the way",
                "turn source checks off where the balancer's packets come in (rp_filter = 0 or 2, "
                "uRPF loose, a cloud's source/destination check); --client tries another address")
        return None
    return _silent_handoff(handoff, service, served, bridge)


def _unwell(service: OfService, handoff: Handoff, bridge: OfBridge) -> Complaint:
    """The server is reached, and does not do what it should."""
    return Complaint(ERROR, f"{bridge.name} of {service.name} {handoff.words}",
                     "ask the server: its log, and [service.check] says what is expected")


def _silent_handoff(
    handoff: Handoff, service: OfService, served: Served, bridge: OfBridge
) -> Complaint | None:
    own = handoff.own
    if own is None:
        return None
    if not own.packets:
        return Complaint(ERROR, f"handoffs do not arrive at {bridge.name}, probes do: a stateful "
                         "firewall or source checks on the way",
                         "let TCP from the balancer to the bridges through without connection "
                         "tracking: it is the middle of connections, whose replies go elsewhere")
    seen = dscp.of_tos(own.tos)
    if seen != service.dscp:
        return _remarked(service, bridge, seen)
    if own.socket is Socket.OPEN:
        return Complaint(ERROR, f"{bridge.name} of {service.name} has accepted the connection, and "
                         f"its answer from {service.vip_end} does not come back: source checks on "
                         "the way back",
                         "routers and clouds have to let packets from the VIP come from the "
                         "servers; and let the host's firewall let them out")
    if served.listener is Listener.NONE:
        return server.refused(served, bridge.name)
    hangs = server.hangs(served, bridge.name)
    if hangs:
        return hangs
    end = served.vip_end if served.adopts else served.server_end
    return Complaint(ERROR, f"opened, never accepted: the host of {bridge.name} lets no handoff in",
                     f"let {end} in without connection tracking, in the host's own firewall: "
                     f"iptables -I INPUT -p tcp -d {end.replace(':', ' --dport ')} -j ACCEPT")


# --- words ---


def _possessive(bridge: OfBridge) -> str:
    name = bridge.name
    return f"{name}'s bridge" if name.startswith("backend") else name


def _shown(keys: tuple[bytes, ...]) -> str:
    return " and ".join(key.hex() for key in keys)
