"""The expected packets' own hashes against published vectors."""

import pytest

from tests.golden.hashes import maglev, murmur3_32, siphash_2_4

KEY = bytes(range(16))


@pytest.mark.parametrize("length, expected", [
    # Aumasson and Bernstein, appendix A (15 octets), and the reference code's vectors.h
    (0, 0x726FDB47DD0E0E31), (1, 0x74F839C593DC67FD), (8, 0x93F5F5799A932462),
    (15, 0xA129CA6149BE45E5), (16, 0x3F2ACC7F57C29BDB), (63, 0x958A324CEB064572),
])
def test_siphash_gives_the_vectors_of_its_paper(length: int, expected: int) -> None:
    assert siphash_2_4(KEY, bytes(range(length))) == expected


@pytest.mark.parametrize("octets, seed, expected", [
    (b"", 0, 0), (b"", 1, 0x514E28B7), (b"", 0xFFFFFFFF, 0x81F16F39),
    (b"\0\0\0\0", 0, 0x2362F9DE), (b"aaaa", 0x9747B28C, 0x5A97808A),
    (b"aaa", 0x9747B28C, 0x283E0130), (b"aa", 0x9747B28C, 0x5D211726),
    (b"a", 0x9747B28C, 0x7FA09EA6), (b"Hello, world!", 0x9747B28C, 0x24884CBA),
    (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
])
def test_murmur_gives_its_known_vectors(octets: bytes, seed: int, expected: int) -> None:
    assert murmur3_32(octets, seed) == expected


def test_maglev_is_even_and_a_leaving_backend_moves_few_other_keys() -> None:
    keys = [f"/{number}".encode() for number in range(3000)]

    before = [maglev(key, 1, 2, 3) for key in keys]
    after = [maglev(key, 1, 3) for key in keys]

    assert all(900 < before.count(backend_id) < 1100 for backend_id in (1, 2, 3))
    stayed = [old == new for old, new in zip(before, after, strict=True) if old != 2]
    assert sum(stayed) > 0.75 * len(stayed)
    assert set(after) == {1, 3}
