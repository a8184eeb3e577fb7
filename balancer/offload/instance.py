"""An instance of the fast engine on this host: what is pinned goes on when its daemon has ended."""

import logging

from balancer.config import Config
from balancer.offload import devices
from balancer.offload.program import Program
from common import settings
from common.bpf import BpfError, build, features, pins
from common.bpf.pins import Pins
from common.cluster.cookie import Secrets
from common.engine.host import Change

log = logging.getLogger(__name__)


class Lasting:
    """What goes on when the daemon has ended."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def keeps(self, change: Change) -> bool:
        """As daemon.Lasting."""
        vips = {str(service.vip) for service in self._config.services}
        return change["kind"] == "address" and change["address"] in vips

    def detach(self) -> None:
        """As daemon.Lasting."""
        try:
            detach(self._config)
        except BpfError as error:
            log.error("%s", error)


def prepare(config: Config, secrets: Secrets) -> tuple[Program | None, str]:
    """Load the program, unless something is against it; nothing on the host is changed.

    Returns: the program, or None and why not.
    Raises: ConfigError where the configuration asks for what cannot be.
    """
    reason = features.refusal(config.engine, config.interface)
    try:
        if config.engine != "portable" and not reason:
            reason = devices.refusal(config)
        if not reason:
            return Program(config, secrets, Pins(owner(config))), ""
    except (OSError, build.BuildError) as error:  # BpfError, or no room for the tables' memory
        log.debug("%s", error)
        reason = str(error).splitlines()[0]
    if config.engine == "fast":
        raise settings.ConfigError(config.file, "engine", "fast", f"auto or portable: {reason}")
    return None, reason


def owner(config: Config) -> str:
    """Whose pins these are."""
    return f"balancer-{config.queue}"


def detach(config: Config) -> None:
    """Take the program off, and forget its maps. Raises: BpfError."""
    pins.detach(owner(config))
