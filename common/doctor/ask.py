"""Asks a bridge, as a doctor: a question over UDP, sent again where nothing comes back."""

import errno
import os
import secrets as random
import socket
import time
from typing import NamedTuple

from common.cluster import probe
from common.cluster.probe import NO_WATCH, Answer, OtherSecret, OtherTime, Question, Served, Watch

TRIES, PATIENCE_S = 3, 0.25  # how often a question is sent, and how long an answer may take


class Silence(NamedTuple):
    """No answer. code: an errno, 0: none; is_local: it is this host's, which has no way there."""

    code: int = 0
    is_local: bool = False

    @property
    def words(self) -> str:
        """The error, as people and as programs know it."""
        return f"{os.strerror(self.code)} ({errno.errorcode.get(self.code, self.code)})"


Reply = Answer | OtherSecret | OtherTime | Silence


class Replied(NamedTuple):
    """A reply, and when: ahead_ms is how far the bridge's clock is ahead, where it said a time."""

    reply: Reply
    ahead_ms: int = 0


class Asker:
    """Asks one bridge under one key. address: text. own: the source, text; empty: the route's."""

    def __init__(self, address: str, port: int, key: bytes, own: str = "") -> None:
        self._end = address, port
        self._own = own
        self._key = key

    def ask(self, tos: int = 0, first: int = 0, watch: Watch = NO_WATCH,
            tries: int = TRIES) -> Replied:
        """Ask with a TOS octet. first, watch: as probe.Question."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            try:
                if self._own:
                    made.bind((self._own, 0))
                made.connect(self._end)
            except OSError as error:
                return Replied(Silence(error.errno or 0, True))
            code = 0
            for _ in range(tries):
                question = Question(probe.key_id(self._key), random.token_bytes(probe.NONCE_LEN),
                                    time.time_ns() // 1_000_000, first, watch)
                try:
                    made.send(probe.emit_question(question, self._key))
                    replied = self._wait(made, question)
                except OSError as error:
                    code = error.errno or 0
                    if code == errno.ECONNREFUSED:
                        break
                    time.sleep(PATIENCE_S)
                    continue
                if replied is not None:
                    return replied
        return Replied(Silence(code))

    def services(self, answer: Answer) -> tuple[Served, ...]:
        """All of a bridge's services, of which the answer has the first ones."""
        found = list(answer.services)
        while found and len(found) < answer.total:
            more = self.ask(first=len(found)).reply
            if not isinstance(more, Answer) or not more.services:
                break
            found += more.services
        return tuple(found)

    def _wait(self, made: socket.socket, question: Question) -> Replied | None:
        """Raises: OSError, which an ICMP error has brought."""
        end_s = time.monotonic() + PATIENCE_S
        while (left_s := end_s - time.monotonic()) > 0:
            made.settimeout(left_s)
            try:
                octets = made.recv(probe.QUESTION_LEN + 1)
            except TimeoutError:
                break
            reply = probe.parse_answer(octets, question, self._key)
            if isinstance(reply, (Answer, OtherTime)):
                now_ms = time.time_ns() // 1_000_000
                # its clock was read about half way between
                return Replied(reply, reply.time_ms - (question.time_ms + now_ms) // 2)
            if reply is not None:
                return Replied(reply)
        return None
