"""The portable engine's verdicts, told to who traces. A data path knows nothing of it."""

import socket

from balancer.offload.maps import SNAP_MAX
from balancer.services import Services
from balancer.trace.messages import Decision, Request
from common.capture.replay import segment_in
from common.cluster.service import Endpoint
from common.engine import clock
from common.verdict import Event, Verdict
from common.wire.family import look
from common.wire.packet import TCP

_MOST_PAYLOAD = 16384  # octets of a stream's beginning; as hold.octets, by default
_TENTH_NS = 100_000_000


class Telling:
    """Sends decisions. lost: how many were too many, or were not read."""

    def __init__(
        self, request: Request, services: Services, connection: socket.socket
    ) -> None:
        """connection: which does not block."""
        self.lost = 0
        self._reasons = request.reasons
        self._network = int(request.client.network_address)
        self._mask = int(request.client.netmask)
        self._most = max(1, request.rate // 10)
        self._services = services
        self._connection = connection
        self._tenth = self._told = 0

    def on_verdict(self, packet: bytes, verdict: Verdict) -> None:
        """Tell of a verdict, if it is asked for."""
        if verdict.reason not in self._reasons:
            return
        if int.from_bytes(look(packet).src) & self._mask != self._network:
            return
        time_ns = clock.now_ns()
        if time_ns // _TENTH_NS != self._tenth:
            self._tenth, self._told = time_ns // _TENTH_NS, 0
        self._told += 1
        if self._told > self._most:
            self.lost += 1
            return
        backend, payload = self._delivered(packet, verdict)
        decision = Decision(time_ns, verdict.reason, backend, packet[:SNAP_MAX], payload)
        try:
            self._connection.send(decision.pack())
        except OSError:
            self.lost += 1

    def _delivered(self, packet: bytes, verdict: Verdict) -> tuple[int, bytes]:
        """The id of the backend that a packet was sent to, and what was held, with a handoff."""
        segment = segment_in(packet)
        if segment is None or verdict.reason not in (
                Event.HANDOFF, Event.FORWARDED, Event.TAKEOVER):
            return 0, b""
        service = self._services.get(
            Endpoint(segment.packet.dst, TCP, int.from_bytes(segment.dport)))
        # others' may have been sent with it, to make room
        sent = [own for made in verdict.packets if (own := segment_in(made)) is not None
                and (own.packet.src, own.sport) == (segment.packet.src, segment.sport)]
        if service is None or not sent:
            return 0, b""
        address = sent[0].packet.dst
        backend = next((each.id for each in service.pool if each.address == address), 0)
        payload = b"".join(bytes(own.payload) for own in sent)
        if verdict.reason is not Event.HANDOFF or payload == segment.payload:
            return backend, b""
        return backend, payload[:_MOST_PAYLOAD]
