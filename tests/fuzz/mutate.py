"""Packets that were sound, and then something happened to them."""

from random import Random

from tests.fuzz.packets import mended

_NUMBERS = (0, 1, 4, 5, 0x0F, 0x40, 0x45, 0x7F, 0x80, 0xFE, 0xFF)
_MAX_LEN = 1500
_MENDED = 0.8  # of all: else hardly any gets past the checksums


def mutated(random: Random, packet: bytes, others: list[bytes]) -> bytes:
    """A packet with one to four changes. others: whose octets it may get."""
    made = bytearray(packet)
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        _change(random, made, others)
    del made[_MAX_LEN:]
    return mended(bytes(made)) if random.random() < _MENDED else bytes(made)


def _change(random: Random, made: bytearray, others: list[bytes]) -> None:
    if not made:
        made += random.choice(others)
        return
    # headers are where most is decided
    off = random.randrange(min(len(made), random.choice((20, 40, 60, len(made)))))
    kind = random.randrange(8)
    if kind == 0:
        made[off] ^= 1 << random.randrange(8)
    elif kind <= 2:
        made[off] = random.choice((*_NUMBERS, random.randrange(256)))
    elif kind == 3:
        made[off:off + 2] = random.choice((0, 1, 0x3FFF, 0x4000, 0x4001, 0xFFFF, len(made),
                                           random.randrange(1 << 16))).to_bytes(2, "big")
    elif kind == 4:
        del made[off:off + random.choice((1, 2, 4, 40))]
    elif kind == 5:
        made[off:off] = made[off:off + random.choice((1, 2, 4, 40))]
    elif kind == 6:
        del made[off:]
    else:
        other = random.choice(others)
        at = random.randrange(len(other))
        end = at + random.choice((1, 4, 12, 40))
        made[off:off + end - at] = other[at:end]
