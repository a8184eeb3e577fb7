"""Records of a ClientHello whose length is none (RFC 8446 §5.1: 1 to 2^14), wherever they stand.

The program and its twin must say the same of every beginning of the stream, and what is said of one
must be said of every longer one.
"""

from collections import Counter
from random import Random

import pytest

from balancer.keys.http import Missing
from balancer.keys.request import KeySpec, choose_key
from balancer.pool.schedule import make_scheduler
from tests.bpf.hellos import Hello, hello
from tests.bpf.test_balancer_keys import MAX_LEN, chooser, five_tuple, service

pytestmark = pytest.mark.root

LENGTHS = (0, 1, 4, 0x3FFF, 0x4000, 0x4001, 0x4100, 0x4800, 0x7FFF, 0x8000, 0xFFFF)
SNI, FALLBACK = KeySpec.parse("tls.sni"), KeySpec.parse("payload:3")


def streams() -> list[bytes]:
    """Hellos of one or two records, either's length another one."""
    found = []
    for record_len in (None, 60, 200):
        for name_place in (0, 3):
            whole = hello(Hello(b"Shop.Example.net", extensions=4, name_place=name_place,
                                record_len=record_len))
            places = [3] if record_len is None else [3, 3 + 5 + record_len]
            for place in places:
                for length in LENGTHS:
                    made = bytearray(whole)
                    made[place:place + 2] = length.to_bytes(2, "big")
                    found.append(bytes(made) + bytes(300))
    return found


@pytest.mark.parametrize("fallback", ["payload:3", "source+port", "http.path"])
def test_records_of_no_length_are_read_alike(fallback: str) -> None:
    random, differences, counts = Random(1), [], Counter[bool]()
    other = KeySpec.parse(fallback)
    with chooser([service(0, [1] * 7, key=SNI, fallback=other)]) as chosen:
        scheduler = make_scheduler("maglev", chosen.services[0].backends, random=random)
        for stream in streams():
            for length in (*range(1, 12), *range(12, min(len(stream), MAX_LEN), 7)):
                ends, payload = five_tuple(random, 0), stream[:length]
                key = choose_key(SNI, other, payload, ends[:4], int.from_bytes(ends[8:10], "big"),
                                 complete=False)
                expected = None if isinstance(key, Missing) else scheduler.pick(key)

                found = chosen.choose(0, ends, payload)

                counts[found is None] += 1
                if found is not None and found != expected:
                    differences.append((payload.hex(), found, expected))

    assert not differences[:3], len(differences)
    assert min(counts[True], counts[False]) > 300


def test_what_is_said_of_a_stream_s_beginning_is_said_of_more_of_it() -> None:
    for stream in streams():
        said = None
        for length in range(1, len(stream) + 1):
            key = choose_key(SNI, KeySpec.parse("source"), stream[:length], b"\1\2\3\4", 5, False)
            assert said is None or key == said
            said = None if isinstance(key, Missing) else key
