"""Somebody looks for thousands of URLs that one backend gets, to load that one alone."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import islice, product
from random import Random

import mmh3
import pytest

from balancer import config
from balancer.keys.request import KeySpec
from balancer.offload.program import PROGRAM_NAME, Program
from balancer.paths import NextHop
from balancer.pool.hashing import hash_by, hash_key
from balancer.pool.schedule import make_scheduler
from common.bpf import BpfError, build
from common.bpf.objects import XDP_TX
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.wire import tcp
from tests.golden.hashes import rotate, siphash

SEED = bytes(range(100, 116))
# what a request target may have in it, and servers take, of all octets
OCTETS = bytes(octet for octet in range(0x21, 0x100) if octet != 0x7F and octet not in b"?#/%\\")
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
VIP, FIRST = IPv4Address("192.168.33.10"), IPv4Address("192.168.33.20")
SECRETS = Secrets(bytes(16))
NOW_MS = 1_700_000_010_000
COUNT, BACKENDS = 3000, 8


def scrambled(word: int) -> int:
    """What MurmurHash3 does with a word before it meets the hash."""
    return rotate(word * 0xCC9E2D51 & 0xFFFFFFFF, 15, 32) * 0x1B873593 & 0xFFFFFFFF


def unscrambled(number: int) -> int:
    """The word that is scrambled to that."""
    word = number * pow(0x1B873593, -1, 1 << 32) & 0xFFFFFFFF
    return rotate(word, 32 - 15, 32) * pow(0xCC9E2D51, -1, 1 << 32) & 0xFFFFFFFF


def twins(difference: int) -> Iterator[tuple[bytes, bytes]]:
    """Four octets each, that differ by so much when they are scrambled."""
    random = Random(difference)
    while True:
        one = bytes(random.choices(OCTETS, k=4))
        other = unscrambled(scrambled(int.from_bytes(one, "little")) ^ difference).to_bytes(
            4, "little")
        if all(octet in OCTETS for octet in other):
            yield one, other


def urls() -> list[bytes]:
    """Paths of one hash, whatever MurmurHash3's seed: a difference, and one that takes it back."""
    parts = [tuple(map(b"".join, zip(first, second, strict=True)))
             for first, second in islice(zip(twins(1 << 18), twins(1 << 31), strict=False), 12)]
    return [b"/abc" + b"".join(chosen) for chosen in islice(product(*parts), COUNT)]


URLS = urls()


def backends() -> tuple[config.Backend, ...]:
    return tuple(config.Backend(number, FIRST + number) for number in range(1, BACKENDS + 1))


def spread(seed: bytes, name: str) -> Counter[int | None]:
    scheduler = make_scheduler(name, backends(), hash_seed=seed, random=Random(1))
    return Counter(map(scheduler.pick, URLS))


def is_even(counts: Counter[int | None]) -> bool:
    """Within six standard deviations of a fair share."""
    fair = COUNT / BACKENDS
    return len(counts) == BACKENDS and all(
        abs(count - fair) < 6 * fair ** 0.5 + 0.02 * fair for count in counts.values())


def test_without_a_seed_anybody_finds_urls_of_one_backend_and_a_murmur_seed_is_none() -> None:
    assert len(set(URLS)) == COUNT
    for seed in (0, 1, 0xDEADBEEF):
        assert len({mmh3.hash(url, seed) for url in URLS}) == 1
    assert len({hash_key(url) for url in URLS}) == 1
    assert len(spread(b"", "maglev")) == 1


@pytest.mark.parametrize("name", ["maglev", "rendezvous"])
def test_with_a_seed_they_spread_over_all_backends(name: str) -> None:
    assert is_even(spread(SEED, name))
    assert spread(SEED, name) != spread(SEED[::-1], name)


@pytest.mark.root
@pytest.mark.parametrize("seed", [b"", SEED], ids=["no seed", "seed"])
def test_the_program_s_hash_is_python_s(seed: bytes) -> None:
    """Of keys of every length modulo 8, and of some that fill the scratch."""
    service = config.Service(name="web", vip=VIP, port=80, dscp=3, backends=backends(),
                             key=KeySpec("http.path"))
    configured = replace(config.Config(services=(service,), max_flows=1000), hash_seed=seed)
    try:
        program = Program(configured, SECRETS, for_tests=True)
    except (BpfError, build.BuildError) as error:
        pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
    program.set_test_time(NOW_MS)
    for backend in service.backends:
        program.set_next_hop(0, backend.id, NextHop(1, 65535, b"\2" * 6, b"\4" * 6))
    run = program.object.program(PROGRAM_NAME).test_run
    scheduler = make_scheduler("maglev", backends(), hash_seed=seed, random=Random(1))
    random = Random(7)
    keys = [b"/" + bytes(random.choices(LETTERS, k=length))
            for length in (*range(64), *range(1300, 1340))] + URLS[:200]
    expected, found = [], []
    for number, key in enumerate(keys):
        ends = bytes((10, 0, number >> 8, number & 255)) + VIP.packed + b"\x9c\x40\0\x50"
        isn = cookie.encode(SECRETS, ends, 6, cookie.epoch_at(NOW_MS), Offer(1460, True, 7))
        packet = tcp.emit(ends, 7, isn + 1, tcp.ACK | tcp.PSH, window=5,
                          payload=b"GET %s HTTP/1.1\r\n\r\n" % key)

        ran = run(bytes(12) + b"\x08\0" + packet)

        assert ran.retval == XDP_TX
        found.append(int.from_bytes(ran.data[30:34], "big") - int(FIRST))
        expected.append(scheduler.pick(key))
    program.close()

    assert found == expected
    assert (len(set(found[-200:])) == 1) is not bool(seed)


@pytest.mark.parametrize("length", range(40))
def test_a_cluster_with_a_seed_hashes_by_siphash_1_3(length: int) -> None:
    key, message = bytes(range(16)), bytes(range(length))

    assert hash_by(key)(message) == siphash(key, message, 1, 3) & 0xFFFFFFFF
