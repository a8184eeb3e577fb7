"""A client whose segments overlap with other octets: one request for the balancer, another for the
server.

In overlaps the copy that was in the stream first counts, and what was hashed is what the server
puts together: it takes from each segment what is beyond those before it (RFC 9293 §3.10.7.4).
"""

from random import Random

import pytest

from balancer.keys.request import KeySpec, choose_key
from balancer.pool.schedule import make_scheduler
from common.verdict import Event, Verdict
from common.wire import tcp
from common.wire.tcp import ACK
from tests.fuzz.datapaths import BACKENDS, CLIENT, START_MS, balancer, cookie_of, ends

PORT, ISN = 40000, 7
KEY = KeySpec.parse("http.path")
SOURCE_KEY = KeySpec.parse("source")


class Client:
    """One that says what it likes."""

    def __init__(self) -> None:
        self.datapath = balancer(key=KEY)
        (service,) = self.datapath.services
        self.scheduler = make_scheduler("rendezvous", service.config.backends, random=Random(1))
        self._cookie_isn = cookie_of(PORT, ISN, START_MS)
        self._now_ms = START_MS

    def send(self, offset: int, octets: bytes) -> Verdict:
        self._now_ms += 1
        return self.datapath.on_packet(
            tcp.emit(ends(PORT), ISN + 1 + offset, self._cookie_isn + 1, ACK, payload=octets),
            self._now_ms)

    def expected(self, stream: bytes) -> int | None:
        """The backend of a request."""
        key = choose_key(KEY, SOURCE_KEY, stream, CLIENT, PORT, True)
        assert isinstance(key, bytes)
        return self.scheduler.pick(key)


def read_by_server(verdict: Verdict) -> bytes:
    """What comes of the packets that were sent to the backend, one after the other."""
    stream = b""
    for packet in verdict.packets:
        segment = tcp.checked(packet)
        offset = segment.seq - ISN - 1
        if offset <= len(stream):
            stream += segment.payload[len(stream) - offset:]
    return stream


def backend_of(verdict: Verdict) -> int:
    return [address.packed for address in BACKENDS].index(verdict.packets[0][16:20]) + 1


@pytest.mark.parametrize("segments", [
    [(0, b"GET /aa"), (0, b"GET /zz"), (7, b"a HTTP/1.1\r\n\r\n")],  # another copy
    [(0, b"GET /aa"), (4, b"/zzz HTTP/1.1\r\n\r\n")],  # one that begins within
    [(0, b"GET /aa"), (0, b"PUT /zza HTTP/1.1\r\n\r\n")],  # a longer one
    [(0, b"GET /aa"), (11, b"TP/1.1\r\n\r\n"), (7, b"a HTTP")],  # behind a gap
    [(0, b"G"), (1, b"ET /a"), (2, b"T /zz"), (6, b"aa HTTP/1.1\r\n\r\n")],
])
def test_the_first_copy_is_hashed_and_is_what_the_server_reads(
    segments: list[tuple[int, bytes]]
) -> None:
    client = Client()

    for offset, octets in segments:
        verdict = client.send(offset, octets)

    assert verdict.reason is Event.HANDOFF
    stream = read_by_server(verdict)
    first = bytearray(64)
    for offset, octets in segments[::-1]:  # the first copy last
        first[offset:offset + len(octets)] = octets
    assert stream.startswith(b"GET /a")
    assert stream == first[:len(stream)]
    assert backend_of(verdict) == client.expected(stream)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_overlaps_the_server_reads_what_was_hashed(seed: int) -> None:
    random = Random(seed)
    handoffs = 0
    for _ in range(200):
        client = Client()
        copies = [b"GET /%d/%d HTTP/1.1\r\n\r\n" % (random.randrange(10**6), number)
                  for number in range(3)]
        verdict = client.send(0, copies[0][:random.randint(1, 8)])
        for _ in range(40):
            octets = random.choice(copies)
            offset = random.randrange(len(octets))
            verdict = client.send(offset, octets[offset:offset + random.randint(1, 9)])
            if verdict.reason is Event.HANDOFF:
                handoffs += 1
                assert backend_of(verdict) == client.expected(read_by_server(verdict))
                break

    assert handoffs > 100
