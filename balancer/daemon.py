"""The balancer's effects: the VIP, the rules, the queue, the socket."""

import time
from collections.abc import Callable
from dataclasses import replace
from random import SystemRandom

from balancer.backends_file import BackendsFiles
from balancer.config import Config
from balancer.datapath import Datapath
from balancer.health.watch import HealthWatch
from balancer.live import LiveBalancer, claim_of
from balancer.measure import Measurement
from balancer.offload import instance
from balancer.offload.offload import ProgramOffload, beside
from balancer.routes import Routes, RouteWatch
from balancer.rules import rules
from common.engine import daemon, log
from common.engine.host import Host
from common.engine.queue import RawSender
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
    configured, files = config, BackendsFiles(config.state_directory, keeps=True)
    config, faults = files.resolve(configured)
    config = replace(config, hash_seed=secret.seed)
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
    health = HealthWatch(datapath, sender, SystemRandom())

    def change(host: Host) -> str:
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

    live = LiveBalancer(config, configured, load, files, datapath, watch, health)
    live.say(faults)
    return daemon.serve(PROGRAM, config, datapath, sender, [claim_of(vip) for vip in vips], change,
                        live, lasting=instance.Lasting(config) if program else None,
                        sources=[*watch.sources, measurement, *health.sources])


def detach(config: Config) -> int:
    """Take the fast engine off, and undo what an ended instance changed. Returns: the exit code.

    Raises: ConfigError while an instance runs.
    """
    return daemon.undo(PROGRAM, config, instance.Lasting(config))
