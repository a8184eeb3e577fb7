"""How many connections the server's stack has adopted: counted among the host's sockets.

An iterator of the kernel's walks through them, when somebody asks; that takes some milliseconds,
and no packet waits for it.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.bpf import build
from common.bpf.links import attach_iterator, open_iterator
from common.bpf.objects import Object
from common.counters import Sample
from packetbridge import metrics
from packetbridge.config import Service

_READ_LEN = 1 << 16
log = logging.getLogger(__name__)


class AdoptedFlows:
    """Of these services."""

    def __init__(self, services: Sequence[Service]) -> None:
        """Raises: BpfError, build.BuildError."""
        self._services: Sequence[Service] = ()
        self._object = Object(build.object_of("packetbridge", "adopted"))
        self._object.load()
        self._ends = self._object.map("ends")
        self.follow(services)
        self._link = attach_iterator(self._object.program("tell_adopted"))

    def follow(self, services: Sequence[Service]) -> None:
        """Count those of these from now on. Raises: BpfError."""
        for service in self._services:
            self._ends.delete(_end_of(service))
        for number, service in enumerate(services):
            self._ends.update(_end_of(service), bytes((number,)))
        self._services = services

    def samples(self) -> list[Sample]:
        """How many there are now, in any thread; nothing, where the kernel does not say."""
        try:
            counts = self._count()
        except OSError as error:
            log.debug("adopted connections are not counted: %s", error)
            return []
        return [metrics.ADOPTED_FLOWS.at(counts[number], service.name)
                for number, service in enumerate(self._services)]

    def _count(self) -> Counter[int]:
        """By the place of the service. Raises: OSError, BpfError too."""
        counts: Counter[int] = Counter()
        told = open_iterator(self._link)
        try:
            while octets := os.read(told, _READ_LEN):
                counts.update(octets)
        finally:
            os.close(told)
        return counts


def _end_of(service: Service) -> dict[str, Any]:
    return {"address": service.vip.packed, "port": service.port}
