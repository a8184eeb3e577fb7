"""The fast engine: how each service is served and why, and its life beside the portable one.

Packets meet the programs first, at tc of the bridge's interface. What these leave alone meets the
portable engine's rules as ever: the fast bridge is the portable one with most packets taken off.

The mode is decided for each service at the start, from what the host has; `auto` prefers adopt.
Programs and maps are pinned, so they go on when the daemon has ended; `detach` ends them.
"""

import logging
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from common import settings
from common.bpf import BpfError, features, pins
from common.cluster.service import Endpoint
from common.engine.host import Change, Host
from packetbridge.config import Config, Service
from packetbridge.offload import adopt, splice
from packetbridge.offload.beside import Part

_KINDS = {"adopt": adopt.Adopt, "splice": splice.Splice}
_DETACH = {adopt.Adopt: adopt.detach, splice.Splice: splice.detach}
log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """How a service is served. reason: what speaks against a better way; empty if there is none."""

    service: Service
    mode: str
    engine: str
    reason: str

    def __str__(self) -> str:
        service = self.service
        end = f"{service.server}:{service.server_port}"
        why = f" ({self.reason})" if self.reason else ""
        return f"{service.name} (DSCP {service.dscp}) to {end}: {self.mode}, {self.engine}{why}"


class Fast:
    """The engine's programs, for the services that were chosen for them."""

    def __init__(self, config: Config, choices: Sequence[Choice], parts: Sequence[Part]) -> None:
        self.choices = choices
        self.parts = parts
        self._config = config
        self._kinds = {mode: part for part in parts for mode, kind in _KINDS.items()
                       if isinstance(part, kind)}

    def spliced(self) -> list[Service]:
        """The services whose established flows programs translate."""
        return _served(self.choices, "splice")

    def adopted(self) -> list[Service]:
        """The services whose connections the host's stack takes over."""
        return _served(self.choices, "adopt")

    @property
    def modes(self) -> set[str]:
        """Those whose programs are here."""
        return set(self._kinds)

    def choose(
        self, config: Config, services: Sequence[Service], foreign: set[IPv4Address]
    ) -> list[Choice]:
        """How these are to be served; those that were served before with the same server, as then.

        Raises: ConfigError where the configuration asks for what cannot be.
        """
        known = {_ends_of(choice.service): choice for choice in self.choices}
        refusals: _Refusals | None = None
        choices = []
        for service in services:
            before = known.get(_ends_of(service))
            if before is None:
                refusals = refusals or _Refusals(config, foreign)
                choices.append(_choose(config, service, refusals))
            else:
                choices.append(before._replace(service=service))
        return choices

    def serve(self, choices: Sequence[Choice]) -> None:
        """Let the programs serve these from now on, all of them of our `modes`."""
        self.choices = choices
        for mode, part in self._kinds.items():
            part.serve(_served(choices, mode))

    def configure(self, config: Config) -> None:
        """Go by these settings from now on, as far as they are not fixed at the start."""
        self._config = config
        for part in self.parts:
            part.configure(config)

    def keeps(self, change: Change) -> bool:
        """As daemon.Lasting."""
        return any(part.keeps(change) for part in self.parts)

    def attach(self, changes: Host) -> None:
        """Let the programs have the packets, and those of an earlier start no more.

        Raises: OSError.
        """
        for part in self.parts:
            part.attach(changes)
        kinds = {type(part) for part in self.parts}
        try:
            pins.sweep()
            for kind, end in _DETACH.items():
                if kind not in kinds:
                    end(self._config)
        except BpfError as error:  # where nothing can be pinned, nothing has been
            log.debug("%s", error)

    def detach(self) -> None:
        """As daemon.Lasting."""
        try:
            for part in self.parts:
                part.detach()
            detach(self._config)
        except BpfError as error:
            log.error("%s", error)


def prepare(config: Config, foreign: set[IPv4Address]) -> Fast:
    """Decide, and load what is needed; nothing on the host is changed.

    foreign: servers that are not on this host.
    Raises: ConfigError where the configuration asks for what cannot be.
    """
    refusals = _Refusals(config, foreign)
    parts: list[Part] = []
    for mode, kind in (("adopt", adopt.Adopt), ("splice", splice.Splice)):
        choices = [_choose(config, service, refusals) for service in config.services]
        wanted = _served(choices, mode)
        if not wanted:
            continue
        try:
            parts.append(kind(config, wanted))
        except BpfError as error:
            log.debug("%s", error)
            refusals.of_mode[mode] = str(error).splitlines()[0]
    choices = [_choose(config, service, refusals) for service in config.services]
    if config.engine == "fast":
        for choice in choices:
            if choice.engine != "fast":
                raise settings.ConfigError(config.file, "engine", "fast",
                                           f"auto or portable: {choice.reason}")
    return Fast(config, choices, parts)


def detach(config: Config) -> None:
    """Take all programs off, and forget their maps. Raises: BpfError."""
    for end in _DETACH.values():
        end(config)


def _ends_of(service: Service) -> tuple[Endpoint, IPv4Address, int]:
    """What decides about how it can be served."""
    return service.endpoint, service.server, service.server_port


def _served(choices: Sequence[Choice], mode: str) -> list[Service]:
    """The services that programs serve in a mode."""
    return [choice.service for choice in choices if (choice.mode, choice.engine) == (mode, "fast")]


class _Refusals:
    """Why services cannot be served fast; empty where nothing is seen to be against it.

    of_mode: whatever the service.
    """

    def __init__(self, config: Config, foreign: set[IPv4Address]) -> None:
        self._foreign = foreign
        host = features.refusal(config.engine, config.interface)
        self.of_mode = {
            "adopt": host or adopt.refusal_of_kernel(),
            "splice": host or splice.refusal_of_kernel(),
        }

    def of(self, mode: str, service: Service) -> str:
        """One line."""
        if self.of_mode[mode]:
            return self.of_mode[mode]
        if service.server in self._foreign:
            return f"{service.server} is not an address of this host"
        return adopt.refusal_of_service(service) if mode == "adopt" else ""


def _choose(config: Config, service: Service, refusals: _Refusals) -> Choice:
    """How to serve a service. Raises: ConfigError where adopt is asked for and cannot be."""
    why_not_adopt = "as configured" if config.mode == "splice" else refusals.of("adopt", service)
    if not why_not_adopt:
        return Choice(service, "adopt", "fast", "")
    if config.mode == "adopt":
        raise settings.ConfigError(config.file, "mode", "adopt", f"auto or splice: {why_not_adopt}")
    why_not_fast = refusals.of("splice", service)
    if not why_not_fast:
        return Choice(service, "splice", "fast", why_not_adopt)
    reasons = dict.fromkeys((why_not_adopt, why_not_fast))
    return Choice(service, "splice", "portable", "; ".join(reasons))
