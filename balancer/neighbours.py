"""Next hops that do not answer: said once, and shown."""

import logging
import socket
from collections import defaultdict

from balancer.metrics import NEXT_HOP_UP
from balancer.paths import Route
from common.counters import Sample

log = logging.getLogger(__name__)


class NextHops:
    """Those to the backends, as the kernel's neighbour tables have them."""

    def __init__(self) -> None:
        self._are_silent: dict[bytes, bool] = {}

    def update(self, routes: dict[bytes, Route]) -> None:
        """The kernel says these now. routes: by the backend's address."""
        ways: dict[bytes, list[tuple[str, Route]]] = defaultdict(list)
        for address, route in routes.items():
            if route.next_hop:
                ways[route.next_hop].append((socket.inet_ntoa(address), route))
        before, self._are_silent = self._are_silent, {
            hop: any(route.is_silent for _, route in found) for hop, found in ways.items()}
        for hop, is_silent in self._are_silent.items():
            if is_silent == before.get(hop, False):
                continue
            name, found = socket.inet_ntoa(hop), ways[hop]
            if is_silent:
                log.warning("the next hop %s on %s does not answer ARP, so packets to %s are lost: "
                            "is it down, or elsewhere?", name, found[0][1].device,
                            ", ".join(address for address, _ in found))
            else:
                log.info("the next hop %s answers again", name)

    def samples(self) -> list[Sample]:
        """As a data path's."""
        return [NEXT_HOP_UP.at(not is_silent, socket.inet_ntoa(hop))
                for hop, is_silent in self._are_silent.items()]
