"""The balancer's effects: the VIP, the rules, the queue, the socket."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import SystemRandom

from balancer.backends_file import BackendsFiles
from balancer.config import Config
from balancer.control.history import History
from balancer.control.kept import Kept, stand, weighed
from balancer.control.orders import Orders
from balancer.control.page import pages
from balancer.control.views import Shown, gets
from balancer.datapath import Datapath
from balancer.doctor.watch import DoctorWatch
from balancer.health.monitor import Monitor
from balancer.health.watch import HealthWatch
from balancer.live import LiveBalancer, claim_of
from balancer.measure import Measurement
from balancer.neighbours import NextHops
from balancer.offload import instance
from balancer.offload.offload import ProgramOffload, beside
from balancer.reckoner import Reckoner
from balancer.routes import Routes, RouteWatch
from balancer.rules import rules
from balancer.trace.messages import path_of
from balancer.trace.server import TraceServer
from balancer.vips import CONFLICT, Probe, VipWatch
from common.control.api import Views
from common.control.inbox import Inbox
from common.control.place import instance_of, kept_path
from common.engine import clock, daemon, log
from common.engine.guarding import Guarded
from common.engine.host import Host
from common.engine.observation import Observation
from common.engine.queue import RawSender
from common.engine.repairs import Repairs
from common.settings.host import check_secret

PROGRAM = "balancer"


def run(config: Config, load: Callable[[], Config]) -> int:
    """Serve until SIGTERM or SIGINT. Returns: the exit code.

    load: the configuration, as it is written whenever it is called; in a thread.

    Raises: ConfigError, before anything on the host is changed.
    """
    secret = check_secret(config.file, config.secret_file)
    secrets = secret.keys_at(time.time())
    log.set_up(config.log_level, config.log_format)
    kept = Kept(kept_path(instance_of(PROGRAM, config), config.state_directory))
    configured, files = config, BackendsFiles(config.state_directory, keeps=True)
    config, faults = files.resolve(configured)
    config = replace(config, hash_seed=secret.seed)
    vips = sorted({service.vip for service in config.services})
    probe = Probe(config.interface, () if config.vip_shared else vips)
    program, reason = instance.prepare(weighed(config, kept.standings), secrets)
    offload: ProgramOffload | None = None
    if program:
        datapath, offload = beside(program, config, secrets, random=SystemRandom())
    else:
        datapath = Datapath(config, secrets, random=SystemRandom())
    stand(datapath.services.backends(), kept.standings)
    measurement, next_hops = Measurement(datapath.paths), NextHops()
    datapath.observers.append(next_hops.samples)

    def on_routes(routes: Routes) -> None:
        next_hops.update(routes)
        if datapath.paths.set_routes(routes):
            measurement.soon()

    watch = RouteWatch(datapath.paths, on_routes, config.interface)
    sender = RawSender(config.mark)
    reckoner = Reckoner(datapath)
    health = HealthWatch(datapath, sender, SystemRandom(), reckoner)
    observation = Observation()
    traces = TraceServer(config.queue, datapath, observation, offload)
    views = make_views(datapath, reckoner, health.monitor, kept, offload)
    repairs, conflicts = Repairs([CONFLICT]), VipWatch(
        config.interface, () if config.vip_shared else vips, lambda: repairs.count(CONFLICT))

    def on_rename(name: str) -> None:
        conflicts.interface = doctor.interface = name
        watch.follow(name)

    def change(host: Host) -> str:
        traces.open()
        # Rules first: once the VIP is ours, its packets must not reach the host's stack.
        way = host.install_rules(rules(config))
        for vip in vips:
            host.add_address(config.interface, str(vip))
        if kept.standings:
            for service in datapath.services:
                datapath.follow(service, datapath.plan(service)())
        services = ", ".join(f"{service.name} ({service.key})" for service in config.services)
        ready = f"ready: {services} on {config.interface}, portable engine by {way}"
        watch.look_up()
        datapath.fit_mss()
        if offload:
            mode = offload.attach(config, datapath.paths)
            return f"{ready}, behind the fast one ({mode.value} XDP)"
        instance.detach(config)  # of an earlier start
        return f"{ready} ({reason})"

    hooks = [program.hooks] if program and program.hooks else []
    live = LiveBalancer(config, configured, load, files, datapath, watch, health, conflicts,
                        lambda backends: stand(backends, kept.standings))
    doctor = DoctorWatch(datapath, health.monitor, SystemRandom(), lambda: live.running,
                         "" if offload else reason)
    live.say(faults)
    probe.check(config.file)
    try:
        return daemon.serve(
            PROGRAM, config, datapath, sender, [claim_of(str(vip)) for vip in vips], change, live,
            lasting=instance.Lasting(config) if program else None,
            sources=[*watch.sources, measurement, reckoner, health, *traces.sources,
                     *conflicts.sources, *doctor.sources],
            views=views, guarded=Guarded(config.interface, repairs, hooks, on_rename),
            observation=observation)
    finally:
        doctor.close()
        traces.close()


def make_views(
    datapath: Datapath, reckoner: Reckoner, monitor: Monitor, kept: Kept,
    offload: ProgramOffload | None,
) -> Views:
    """What is answered by HTTP. offload: of a program."""
    inbox = Inbox()
    counted_ms = (lambda: offload.counted_ms) if offload else clock.now_ms
    shown = Shown(datapath, monitor, counted_ms)
    history = History(inbox, shown)
    return Views(inbox, partial(shown.facts, inbox), {**gets(inbox, shown), **history.gets()},
                 Orders(inbox, shown, reckoner, kept).posts(),
                 ("status", "services", "backends", "reasons"), pages(), [history.keep])


def detach(config: Config) -> int:
    """Take the fast engine off, and undo what an ended instance changed. Returns: the exit code.

    Raises: ConfigError while an instance runs.
    """
    code = daemon.undo(PROGRAM, config, instance.Lasting(config))
    path_of(config.queue).unlink(missing_ok=True)  # a killed one's
    return code
