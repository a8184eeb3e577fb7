"""Backends that stand in a file of their own, which something else writes: one address a line.

    192.0.2.20
    192.0.2.21  weight=2
    192.0.2.22  id=7           # everything from a # on is left out

Ids decide which URL goes where and stand in clients' timestamps, so they must not change: those
that are given here are remembered, by service and address, and no other backend gets one while
there is one that nobody has had. A line that is wrong is left out.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, NamedTuple

from balancer.config import Backend, Config, Service
from common import private_file
from common.settings import ConfigError
from common.settings.readers import ipv4

_read_address = ipv4("the server's port goes into the bridge's `server`").read
_MAX_WEIGHT = 65535
_NAME = "backends.json"


class Line(NamedTuple):
    """A backend as it is written. id: None where none is given."""

    address: IPv4Address
    id: int | None = None
    weight: int = 1


class Remembered(NamedTuple):
    """The id that an address has. left_s: unix time since when it is not in the file; else None."""

    id: int
    left_s: float | None = None


Memory = dict[str, Remembered]  # by address


class BackendsFiles:
    """Files of backends, and the ids that they have. keeps: whether new ids are remembered."""

    def __init__(self, directory: str, *, keeps: bool) -> None:
        self._path = Path(directory) / _NAME
        self._keeps = keeps

    def resolve(
        self, configured: Config, previous: Config | None = None
    ) -> tuple[Config, list[str]]:
        """A configuration with the backends of its services' files, and what is wrong in these.

        previous: what runs: its backends stay where a file cannot be read, or has none.
        Raises: ConfigError where there are none to stay, or ids cannot be remembered.
        """
        if not any(service.backends_file for service in configured.services):
            return configured, []
        memories = self._recall()
        before = json.dumps(_plain(memories))
        known = {service.endpoint: service for service in (previous.services if previous else ())}
        services, faults = [], []
        for service in configured.services:
            if service.backends_file:
                memory = memories.setdefault(_name_of(service), {})
                service, found = _filled(
                    service, configured, known.get(service.endpoint), memory, time.time())
                faults += found
            services.append(service)
        if self._keeps and json.dumps(_plain(memories)) != before:
            self._remember(configured.file, memories)
        return replace(configured, services=tuple(services)), faults

    def _recall(self) -> dict[str, Memory]:
        try:
            plain: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return {service: {address: Remembered(*each) for address, each in memory.items()}
                for service, memory in plain.items()}

    def _remember(self, file: str, memories: Mapping[str, Memory]) -> None:
        directory = self._path.parent
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            private_file.replace(self._path, json.dumps(_plain(memories)))
        except OSError as error:
            raise ConfigError(file, "state_directory", str(directory),
                              f"a directory that can be written ({error.strerror})") from None


def parse(text: str) -> tuple[list[Line], list[tuple[int, str]]]:
    """The lines of a file, and those that are wrong: their numbers, and what would be right."""
    lines: list[Line] = []
    faults = []
    for number, written in enumerate(text.splitlines(), 1):
        words = written.partition("#")[0].split()
        if not words:
            continue
        try:
            line = _parse_line(words)
            if any(line.address == other.address for other in lines):
                raise ValueError("an address that no other line has")
        except ValueError as wrong:
            faults.append((number, f"{written.strip()!r}: expected {wrong}"))
            continue
        lines.append(line)
    return lines, faults


def give_ids(
    lines: Iterable[Line], taken: Iterable[int], memory: Memory, id_max: int, now_s: float
) -> tuple[list[Backend], list[str]]:
    """Backends with their ids, and what cannot be. memory: gets what is new.

    taken: ids of backends that are configured elsewhere. id_max: the largest. now_s: unix time.
    """
    lines, used, faults, backends = list(lines), set(taken), [], []
    for line in sorted(lines, key=lambda line: (line.id is None, str(line.address) not in memory)):
        address = str(line.address)
        known = memory.get(address)
        wanted = line.id if line.id is not None else known.id if known else None
        if wanted is not None and line.id is None and (wanted in used or wanted > id_max):
            wanted = None  # somebody has written it for another
        if wanted is None:
            wanted = _free_id(used, memory, id_max)
        if wanted is None or wanted > id_max:
            faults.append(f"{address}: expected at most {id_max} backends, as id_bits has it")
        elif wanted in used:
            faults.append(f"{address}: expected an id that no other backend has, not {wanted}")
        else:
            used.add(wanted)
            for other in [each for each, entry in memory.items() if entry.id == wanted]:
                del memory[other]
            memory[address] = Remembered(wanted)
            backends.append(Backend(wanted, line.address, line.weight))
    present = {str(line.address) for line in lines}
    for address, entry in memory.items():
        if address not in present and entry.left_s is None:
            memory[address] = entry._replace(left_s=now_s)
    return sorted(backends, key=lambda backend: backend.id), faults


def _free_id(used: set[int], memory: Memory, id_max: int) -> int | None:
    """One that nobody has had; else that of the backend which left first."""
    known = {entry.id for entry in memory.values()}
    for id in range(1, id_max + 1):
        if id not in used and id not in known:
            return id
    left = [entry for entry in memory.values()
            if entry.left_s is not None and entry.id not in used and entry.id <= id_max]
    return min(left, key=lambda entry: entry.left_s or 0).id if left else None


def _parse_line(words: list[str]) -> Line:
    """Raises: ValueError with what would be right."""
    address, *fields = words
    line = Line(_read_address(address))
    for field in fields:
        name, _, value = field.partition("=")
        if name not in ("id", "weight") or not value.isdecimal():
            raise ValueError("ADDRESS [id=N] [weight=N]")
        number = int(value)
        line = line._replace(id=number) if name == "id" else line._replace(weight=number)
    if line.id == 0:
        raise ValueError("an id from 1 on")
    if line.weight > _MAX_WEIGHT:
        raise ValueError(f"a weight up to {_MAX_WEIGHT}")
    return line


def _filled(
    service: Service, configured: Config, previous: Service | None, memory: Memory, now_s: float
) -> tuple[Service, list[str]]:
    """A service with the backends of its file. Raises: ConfigError where it would have none."""
    path = service.backends_file or ""
    try:
        lines, wrong = parse(Path(path).read_text(errors="replace"))
        why = "" if lines or service.backends else "a file with at least one backend"
    except OSError as error:
        lines, wrong = [], []
        why = f"a readable file ({error.strerror})"
    faults = [f"{path}, line {number}: {fault}" for number, fault in wrong]
    if why:
        if previous is None:
            raise ConfigError(configured.file, "backends_file", path, why)
        stay = replace(service, backends=previous.backends)
        return stay, [*faults, f"{path}: expected {why}; the backends of {service.name} stay"]
    vips = {each.vip for each in configured.services}
    fixed = {backend.address for backend in service.backends}
    fitting = [line for line in lines if line.address not in vips | fixed]
    faults += [f"{path}: {line.address}: expected an address that is no VIP, and no other backend's"
               for line in lines if line not in fitting]
    backends, more = give_ids(fitting, (backend.id for backend in service.backends), memory,
                              (1 << configured.id_bits) - 1, now_s)
    return (replace(service, backends=(*service.backends, *backends)),
            faults + [f"{path}: {fault}" for fault in more])


def _name_of(service: Service) -> str:
    return f"{service.vip}:{service.port}"


def _plain(memories: Mapping[str, Memory]) -> dict[str, dict[str, Remembered]]:
    return {service: dict(sorted(memory.items())) for service, memory in sorted(memories.items())}
