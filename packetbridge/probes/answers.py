"""What a bridge answers to a datagram. Pure: octets, clock and what is known in, octets out.

Whoever has the secret hears all; anybody else, which keys the bridge has, by their fingerprints.
Both have a budget. No answer is longer than its question.
"""

from collections.abc import Callable, Sequence

from common.cluster import probe
from common.cluster.probe import Answer, Question, Served, Sighting, Watch
from common.cluster.secrets import Secrets

SIGNED_RATE, UNSIGNED_RATE = 200, 10  # answers a second


class Budget:
    """So many in a second, of any clock in ms."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._second = -1
        self._left = 0

    def take(self, now_ms: int) -> bool:
        """Whether there is one left."""
        if now_ms // 1000 != self._second:
            self._second, self._left = now_ms // 1000, self._rate
        self._left -= 1
        return self._left >= 0


class Answers:
    """Answers questions.

    secrets, services: those of now. watched: what came of a watch; the first call begins it.
    """

    def __init__(
        self, secrets: Callable[[], Secrets], services: Callable[[], Sequence[Served]],
        watched: Callable[[Watch], Sighting], version: str, kernel: str,
    ) -> None:
        self._secrets = secrets
        self._services = services
        self._watched = watched
        self._version, self._kernel = version, kernel
        self._signed, self._unsigned = Budget(SIGNED_RATE), Budget(UNSIGNED_RATE)

    def on_datagram(
        self, octets: bytes, tos: int, ttl: int, now_ms: int, unix_ms: int
    ) -> bytes | None:
        """The answer, if there is to be one. tos, ttl: of the packet. now_ms: for budgets."""
        question = probe.parse_question(octets)
        if question is None:
            return None
        secrets = self._secrets()
        key = probe.key_named(secrets, question.key_id)
        if key is None:
            if not self._unsigned.take(now_ms):
                return None
            return probe.emit_other_secret(question.nonce, probe.key_ids(secrets))
        if not probe.is_signed(octets, key) or not self._signed.take(now_ms):
            return None
        if abs(unix_ms - question.time_ms) > probe.BOUND_MS:
            return probe.emit_other_time(question.nonce, unix_ms, key)
        return probe.emit_answer(self._answer(question, secrets, tos, ttl, unix_ms), key)

    def _answer(
        self, question: Question, secrets: Secrets, tos: int, ttl: int, unix_ms: int
    ) -> Answer:
        services = self._services()
        watch = question.watch
        return Answer(
            question.nonce, unix_ms, tos, ttl, probe.key_ids(secrets), self._version, self._kernel,
            len(services), tuple(services[question.first:]),
            self._watched(watch) if watch != probe.NO_WATCH else Sighting())
