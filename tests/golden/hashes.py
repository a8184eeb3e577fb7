"""SipHash, MurmurHash3 and Maglev once more, written from their papers for the expected packets.

Slow and plain, and independent of what the programs use, so that a golden case
never states what the code under test happens to say.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, §2;
        Appleby, MurmurHash3 (public domain), x86, 32 bits;
        Eisenbud et al., "Maglev", NSDI 2016, §3.4, pseudocode 1.
"""

from functools import cache

_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_TABLE_SIZE = 65537


def rotate(number: int, count: int, bits: int) -> int:
    return (number << count | number >> bits - count) & (1 << bits) - 1


def _sip_round(v: list[int]) -> None:
    v[0] = v[0] + v[1] & _MASK64
    v[2] = v[2] + v[3] & _MASK64
    v[1] = rotate(v[1], 13, 64) ^ v[0]
    v[3] = rotate(v[3], 16, 64) ^ v[2]
    v[0] = rotate(v[0], 32, 64)
    v[2] = v[2] + v[1] & _MASK64
    v[0] = v[0] + v[3] & _MASK64
    v[1] = rotate(v[1], 17, 64) ^ v[2]
    v[3] = rotate(v[3], 21, 64) ^ v[0]
    v[2] = rotate(v[2], 32, 64)


def siphash_2_4(key: bytes, message: bytes) -> int:
    """SipHash-2-4 of `message` under a key of 16 octets, 64 bits."""
    return siphash(key, message, 2, 4)


def siphash(key: bytes, message: bytes, rounds: int, last_rounds: int) -> int:
    """SipHash with so many rounds for a word, and so many at the end."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D,
         k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    whole = len(message) // 8 * 8
    words = [int.from_bytes(message[at:at + 8], "little") for at in range(0, whole, 8)]
    words.append(int.from_bytes(message[whole:], "little") | (len(message) & 0xFF) << 56)
    for word in words:
        v[3] ^= word
        for _ in range(rounds):
            _sip_round(v)
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(last_rounds):
        _sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def murmur3_32(octets: bytes, seed: int = 0) -> int:
    """MurmurHash3, x86, 32 bits."""
    h = seed
    for at in range(0, len(octets), 4):
        block = octets[at:at + 4]
        k = int.from_bytes(block, "little") * 0xCC9E2D51 & _MASK32
        h ^= rotate(k, 15, 32) * 0x1B873593 & _MASK32
        if len(block) == 4:
            h = rotate(h, 13, 32) * 5 + 0xE6546B64 & _MASK32
    h ^= len(octets)
    h = (h ^ h >> 16) * 0x85EBCA6B & _MASK32
    h = (h ^ h >> 13) * 0xC2B2AE35 & _MASK32
    return h ^ h >> 16


@cache
def _maglev_table(ids: tuple[int, ...]) -> list[int]:
    """The lookup table for backends of equal weight, in ascending order of their ids."""
    table = [0] * _TABLE_SIZE
    names = [f"backend {backend_id}".encode() for backend_id in ids]
    slots = [murmur3_32(name, 1) % _TABLE_SIZE for name in names]
    skips = [murmur3_32(name, 2) % (_TABLE_SIZE - 1) + 1 for name in names]
    filled = 0
    while True:
        for index, backend_id in enumerate(ids):
            while table[slots[index]]:
                slots[index] = (slots[index] + skips[index]) % _TABLE_SIZE
            table[slots[index]] = backend_id
            filled += 1
            if filled == _TABLE_SIZE:
                return table


def maglev(key: bytes, *ids: int) -> int:
    """The id that Maglev chooses for `key` among backends of equal weight."""
    return _maglev_table(ids)[murmur3_32(key) % _TABLE_SIZE]
