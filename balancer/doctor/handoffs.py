"""Hands a connection of the balancer's own over, as a health check does, and has the bridge say
what it saw of it; and one packet like it that comes from a client's address.
"""

import select
import socket
import time
from random import SystemRandom

from balancer.doctor.findings import Handoff
from balancer.health.exchange import REFUSES, Exchange
from balancer.health.request import Outcome, Request, request_of
from balancer.health.settings import Check
from balancer.health.watch import answers_from
from balancer.pool.pool import Backend
from balancer.services import ServiceState
from common.cluster.probe import Answer, Sighting, Watch
from common.cluster.secrets import Secrets
from common.doctor.ask import Asker
from common.engine.queue import RawSender
from common.wire import Malformed, five_tuple, tcp
from common.wire.family import look, of_five_tuple
from common.wire.tcp import RST, Segment

PATIENCE_MS, SENT_TIMES = 900, 3
_ARRIVES_S = 0.05
_FIRST_PORT, _PORTS = 20_000, 12_000
_MOST_OCTETS = 1 << 16
_random = SystemRandom()


def try_handoff(
    service: ServiceState, backend: Backend, secrets: Secrets, own: bytes, client: bytes | None,
    sender: RawSender, asker: Asker | None,
) -> Handoff:
    """own, client: addresses; no client: that is not tried. asker: of the bridge; None: it does not
    answer probes.

    Raises: OSError.
    """
    port = _FIRST_PORT + _random.randrange(_PORTS)
    watch = Watch(service.config.dscp, own, port)
    if asker:
        _look(asker, watch)
    handoff, exchange = _exchange(service, backend, secrets, own, port, sender)
    if asker and not handoff.is_taken and not handoff.is_refused:
        handoff = handoff._replace(own=_look(asker, watch))
    sender.send(exchange.reset())
    if asker and client and handoff.is_taken:
        handoff = handoff._replace(client=_try_client(service, backend, client, sender, asker))
    return handoff


def _look(asker: Asker, watch: Watch) -> Sighting | None:
    """What the bridge has seen; the first time, it begins to look."""
    reply = asker.ask(watch=watch).reply
    return reply.sighting if isinstance(reply, Answer) else None


def _exchange(
    service: ServiceState, backend: Backend, secrets: Secrets, own: bytes, port: int,
    sender: RawSender,
) -> tuple[Handoff, Exchange]:
    """Hand over, and see what comes back."""
    check = service.config.check
    request = request_of(check, service.config.vip) or _any_request(service)
    exchange = Exchange(
        service, backend, request, secrets, source=own, sport=port,
        client_isn=_random.getrandbits(32), now_ms=time.time_ns() // 1_000_000)
    has_check = check.kind != "none"
    timeout_ms = check.timeout_ms if has_check else PATIENCE_MS
    with answers_from([service.config.vip.packed]) as answers:
        outcome = None
        begun_s = time.monotonic()
        for turn in range(1, SENT_TIMES + 1):
            if not exchange.is_seen:
                sender.send(exchange.handoff)
            end_s = begun_s + PATIENCE_MS * turn / SENT_TIMES / 1000
            outcome = _hear(answers, exchange, sender, end_s, has_check)
            if outcome or (exchange.is_seen and not has_check):
                break
        if not outcome and exchange.is_seen and has_check:  # it is taken, and may take its time
            outcome = _hear(answers, exchange, sender, begun_s + timeout_ms / 1000, True)
    refused = outcome is not None and not exchange.is_seen and not outcome.is_passed \
        and outcome.words == REFUSES
    outcome = outcome or exchange.on_timeout(max(PATIENCE_MS, timeout_ms))
    is_taken = exchange.is_seen or outcome.words.startswith("answers")
    return Handoff(is_taken, is_taken and (outcome.is_passed or not has_check), refused,
                   outcome.words), exchange


def _hear(
    answers: socket.socket, exchange: Exchange, sender: RawSender, end_s: float, has_check: bool
) -> Outcome | None:
    """Read answers until there is an outcome or the time has come."""
    while (left_s := end_s - time.monotonic()) > 0:
        if not select.select([answers], [], [], left_s)[0]:
            break
        try:
            segment = Segment(look(answers.recv(_MOST_OCTETS)))
        except (Malformed, BlockingIOError):
            continue
        if segment.five_tuple != exchange.key:
            continue
        outcome, reply = exchange.on_segment(segment)
        if reply:
            sender.send(reply)
        if outcome:
            return outcome
        if exchange.is_seen and not has_check:
            return None
    return None


def _any_request(service: ServiceState) -> Request:
    """What a server of the service's kind understands, where no check says what to ask."""
    kind = service.config.key.kind.partition(".")[0]
    if kind == "tls":
        check = Check(kind="tls")
    elif kind == "http":
        check = Check(kind="http", status=(200, 599))
    else:
        check = Check(kind="payload", send="\r\n", expect="\r\n")
    made = request_of(check, service.config.vip)
    assert made is not None
    return made


def _try_client(
    service: ServiceState, backend: Backend, client: bytes, sender: RawSender, asker: Asker
) -> Sighting | None:
    """A tagged RST from a client's address: what checks sources drops it, and nobody answers it."""
    port = _FIRST_PORT + _random.randrange(_PORTS)
    watch = Watch(service.config.dscp, client, port)
    ends = five_tuple.join(client, service.config.vip.packed, port.to_bytes(2),
                           service.config.port.to_bytes(2))
    seen = _look(asker, watch)
    for _ in range(SENT_TIMES):
        octets = bytearray(tcp.emit(ends, _random.getrandbits(32), 0, RST))
        tcp.patch_checksum(octets, of_five_tuple(ends).header_len, backend.way.changes)
        sender.send(backend.way.wrap(octets))
        time.sleep(_ARRIVES_S)
        seen = _look(asker, watch)
        if seen is None or seen.packets:
            break
    return seen

