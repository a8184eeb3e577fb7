"""Services' numbers, by which flows name them: theirs through every change of the configuration.

Kept with the flows. A service that is configured no more has its number until none of its flows is
left; a new one gets a number that nobody has.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from common.bpf.maps import Map
from common.cluster.service import Endpoint, numbered
from common.wire.packet import TCP

log = logging.getLogger(__name__)


class ServiceNumbers:
    """Numbers by endpoint, in a map that outlives the daemon, with room for all that there are."""

    def __init__(self, numbers: Map) -> None:
        self._map = numbers
        self._room = numbers.shape.max_entries

    def assign(
        self, configured: Sequence[Endpoint], forget_flows: Callable[[int], None]
    ) -> dict[Endpoint, int]:
        """The numbers of all services that are configured.

        forget_flows: removes those of a number, where a new service finds none that is free.
        Raises: ValueError if there are more services than numbers.
        """
        known = self.known()
        lost = [endpoint for endpoint in known if endpoint not in configured]
        while lost and len({*known, *configured}) > self._room:  # so soon after so many others
            log.info("flows of a service that is configured no more are forgotten")
            forget_flows(known.pop(lost[-1]))
            self._map.delete(_key(lost.pop()))
        numbers = numbered(configured, known, self._room)
        for endpoint in configured:
            if endpoint not in known:
                self._map.update(_key(endpoint), numbers[endpoint])
        return numbers

    def release(self, configured: Iterable[Endpoint]) -> None:
        """Let the numbers of all others go: none of their flows is left."""
        for endpoint in self.known().keys() - set(configured):
            self._map.delete(_key(endpoint))

    def known(self) -> dict[Endpoint, int]:
        """All that have a number."""
        return {Endpoint(key.vip, TCP, int.from_bytes(key.port, "big")): number
                for key, number in self._map.items()}

    def close(self) -> None:
        """Let go of the map."""
        self._map.close()


def _key(endpoint: Endpoint) -> dict[str, bytes]:
    """As balancer/offload/bpf/maps.h:service_key."""
    return {"vip": endpoint.address, "port": endpoint.port_octets}
