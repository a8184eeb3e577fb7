"""The bridge's way out: one socket for packets to servers, one for those to clients."""

from common.engine.queue import RawSender
from common.wire.family import dst_of


class Senders:
    """Packets to servers leave with `mark`, which their answers inherit; those to clients with +1.

    servers: addresses, 4 octets each.
    """

    def __init__(self, mark: int, servers: frozenset[bytes]) -> None:
        """Raises: OSError."""
        self.servers = servers
        self._to_server, self._to_client = RawSender(mark), RawSender(mark + 1)

    def send(self, packet: bytes) -> int:
        """As RawSender."""
        if dst_of(packet) in self.servers:
            return self._to_server.send(packet)
        return self._to_client.send(packet)

    @property
    def failures(self) -> int:
        """As RawSender."""
        return self._to_server.failures + self._to_client.failures

    def say_failures(self) -> None:
        """As RawSender."""
        self._to_server.say_failures()
        self._to_client.say_failures()
