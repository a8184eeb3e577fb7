"""What the operator wants to hold beyond a restart: a file, read at the start.

Backends are known by their service's endpoint and their id, which both stay when names and
addresses change. What is kept of backends that are not configured waits for their return.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from balancer.config import Config, Service
from balancer.pool.pool import Backend
from balancer.pool.share import Operator, Standing
from balancer.services import ServiceState
from common import private_file
from common.engine.lock import check_directory

log = logging.getLogger(__name__)


class Name(NamedTuple):
    """Of a backend. service: its endpoint, as `192.0.2.10:80`."""

    service: str
    backend: int


def name_of(service: Service, backend_id: int) -> Name:
    """The name of a service's backend."""
    return Name(f"{service.vip}:{service.port}", backend_id)


class Kept:
    """What is kept, and its file. path: None where nothing is read, or can be kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.standings: dict[Name, Standing] = {}
        if path is not None and path.exists():
            try:
                self.standings = _parsed(path)
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.error("%s is not as this program writes it, so it does not count: %s",
                          path, error)

    def note(self, name: Name, standing: Standing) -> None:
        """Keep what the operator wants of a backend; nothing special is nothing to keep."""
        self.standings.pop(name, None)
        if _is_special(standing):
            self.standings[name] = Standing(standing.operator, weight=standing.weight)

    def write(self) -> None:
        """Replace the file at once. Raises: OSError."""
        path = self._path
        if path is None:
            return
        if not self.standings:
            path.unlink(missing_ok=True)
            return
        check_directory(path.parent, 0o755)
        private_file.replace(path, json.dumps({"backends": [
            {"service": name.service, "backend": name.backend,
             "operator": standing.operator.value, "weight": standing.weight}
            for name, standing in self.standings.items()]}, indent=2) + "\n")


def weighed(config: Config, standings: Mapping[Name, Standing]) -> Config:
    """The configuration with what is kept for weights, for who knows no standings."""
    def weight(service: Service, backend: Any) -> int:
        kept = standings.get(name_of(service, backend.id), Standing())
        if kept.operator is not Operator.ENABLED:
            return 0
        return backend.weight if kept.weight is None else kept.weight

    return replace(config, services=tuple(
        replace(service, backends=tuple(
            replace(backend, weight=weight(service, backend)) for backend in service.backends))
        for service in config.services))


def stand(backends: Iterable[Backend], standings: Mapping[Name, Standing]) -> list[ServiceState]:
    """Let backends that are new stand as is kept. Returns: whose some are."""
    changed = []
    for backend in backends:
        service: ServiceState = backend.service
        kept = standings.get(name_of(service.config, backend.id))
        if kept is None:
            continue
        backend.standing = backend.standing._replace(operator=kept.operator, weight=kept.weight)
        changed.append(service)
        log.warning("backend %d of %s: the operator has kept it %s%s", backend.id,
                    service.config.name, kept.operator.value,
                    "" if kept.weight is None else f", with weight {kept.weight}")
    return changed


def _is_special(standing: Standing) -> bool:
    return standing.operator is not Operator.ENABLED or standing.weight is not None


def _parsed(path: Path) -> dict[Name, Standing]:
    """Raises: OSError, ValueError, TypeError, KeyError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor) as file:
        found = os.fstat(descriptor)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise PermissionError("others may write it")
        content = json.load(file)
    return {
        Name(str(each["service"]), int(each["backend"])): Standing(
            Operator(each["operator"]),
            weight=None if each["weight"] is None else int(each["weight"]))
        for each in content["backends"]
    }
