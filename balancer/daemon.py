"""The balancer's effects: the VIP, the rules, the queue, the socket."""

import time
from dataclasses import replace
from random import SystemRandom

from balancer.config import Config
from balancer.datapath import Datapath
from balancer.health.watch import HealthWatch
from balancer.measure import Measurement
from balancer.offload import instance
from balancer.offload.offload import ProgramOffload, beside
from balancer.routes import Routes, RouteWatch
from balancer.trace.messages import path_of
from balancer.trace.server import TraceServer
from common.bpf.allowance import BUDGETS
from common.engine import daemon, log
from common.engine.daemon import Claim
from common.engine.firewall import Rule
from common.engine.host import Host
from common.engine.observation import Observation
from common.engine.queue import RawSender
from common.settings.host import check_secret
from common.wire import icmp

PROGRAM = "balancer"
_IMPOSSIBLE_SOURCES = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")  # as common/wire/ipv4.py


def run(config: Config) -> int:
    """Serve until SIGTERM or SIGINT. Returns: the exit code.

    Raises: ConfigError, before anything on the host is changed.
    """
    secret = check_secret(config.file, config.secret_file)
    secrets = secret.keys_at(time.time())
    config = replace(config, hash_seed=secret.seed)
    log.set_up(config.log_level, config.log_format)
    program, reason = instance.prepare(config, secrets)
    offload: ProgramOffload | None = None
    if program:
        datapath, offload = beside(program, config, secrets, random=SystemRandom())
    else:
        datapath = Datapath(config, secrets, random=SystemRandom())
    vips = sorted({str(service.vip) for service in config.services})
    measurement = Measurement(datapath.paths)

    def on_routes(routes: Routes) -> None:
        if datapath.paths.set_routes(routes):
            measurement.soon()

    watch = RouteWatch(datapath.paths, on_routes, config.interface)
    sender = RawSender(config.mark)
    sources = [*watch.sources, measurement]
    if any(service.check.kind != "none" for service in config.services):
        sources += HealthWatch(datapath, sender, SystemRandom()).sources
    observation = Observation()
    traces = TraceServer(config.queue, datapath, observation, offload)
    sources += traces.sources

    def change(host: Host) -> str:
        traces.open()
        # Rules first: once the VIP is ours, its packets must not reach the host's stack.
        way = host.install_rules(rules(config))
        for vip in vips:
            host.add_address(config.interface, vip)
        services = ", ".join(f"{service.name} ({service.key})" for service in config.services)
        ready = f"ready: {services} on {config.interface}, portable engine by {way}"
        watch.look_up()
        datapath.fit_mss()
        if offload:
            mode = offload.attach(config, datapath.paths)
            return f"{ready}, behind the fast one ({mode.value} XDP)"
        instance.detach(config)  # of an earlier start
        return f"{ready} ({reason})"

    claims = [Claim(f"vip/{vip}", "vip", vip, "a VIP of its own") for vip in vips]
    try:
        return daemon.serve(PROGRAM, config, datapath, sender, claims, change,
                            lasting=instance.Lasting(config) if program else None,
                            sources=sources, observation=observation)
    finally:
        traces.close()


def detach(config: Config) -> int:
    """Take the fast engine off, and undo what an ended instance changed. Returns: the exit code.

    Raises: ConfigError while an instance runs.
    """
    code = daemon.undo(PROGRAM, config, instance.Lasting(config))
    path_of(config.queue).unlink(missing_ok=True)  # a killed one's
    return code


def rules(config: Config) -> list[Rule]:
    """Everything for a service, and ICMP errors and fragments for its VIP, to the queue.

    And whatever is told of a narrow path, wherever it comes in: it may be about a forwarded packet.
    It may as well be about the host's own, which must not miss it while nobody listens, nor while
    more comes than the queue gets.
    """
    made = []
    for service in config.services:
        vip = Rule("prerouting", config.queue, config.interface, destination=str(service.vip))
        served = replace(vip, protocol="tcp", dport=service.port)
        limited = [
            replace(vip, protocol="tcp", fragment=True, limit=BUDGETS["UP_IP"]),
            *(replace(vip, protocol="icmp", icmp_type=error, limit=BUDGETS["UP_ICMP"])
              for error in icmp.ERRORS),
        ]
        made += [
            *(replace(served, source=source, drop=True)
              for source in (*_IMPOSSIBLE_SOURCES, str(service.vip))),
            served,
            *(each for rule in limited for each in (rule, replace(rule, limit=None, drop=True))),
        ]
    made.append(Rule("prerouting", config.queue, protocol="icmp", bypass=True,
                     icmp_type=icmp.DEST_UNREACHABLE, icmp_code=icmp.FRAGMENTATION_NEEDED,
                     limit=BUDGETS["UP_ICMP"]))
    made.append(Rule("output", None, mark=config.mark))
    return list(dict.fromkeys(made))
