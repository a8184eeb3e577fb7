"""SYN cookies: the vectors of SipHash's paper, the layout, and what is refused."""

import pytest
from siphash24 import siphash24

from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets

KEY = bytes(range(16))
FIVE_TUPLE = bytes((192, 168, 33, 1, 192, 168, 33, 10, 0x9C, 0x40, 0, 80))
EPOCH = 1000
NOW_MS = EPOCH * 64_000


@pytest.mark.parametrize("length, expected", [
    (0, 0x726FDB47DD0E0E31), (1, 0x74F839C593DC67FD), (15, 0xA129CA6149BE45E5),
])
def test_the_library_gives_the_vectors_of_siphashs_paper(length: int, expected: int) -> None:
    digest = siphash24(bytes(range(length)), key=KEY).intdigest()  # may be signed

    assert digest & 0xFFFFFFFFFFFFFFFF == expected


@pytest.mark.parametrize("offer, low", [
    (Offer(536, False, None), 0b000_0_1111),
    (Offer(1, False, 0), 0b000_0_0000),
    (Offer(1459, True, 7), 0b101_1_0111),
    (Offer(1460, True, 14), 0b110_1_1110),
    (Offer(1461, False, 255), 0b110_0_1110),
    (Offer(65535, True, None), 0b111_1_1111),
])
def test_the_low_octet_says_what_was_offered(offer: Offer, low: int) -> None:
    made = cookie.encode(Secrets(KEY), FIVE_TUPLE, 7, EPOCH, offer)

    assert made & 0xFF == low
    assert made >> 8 == cookie.mac(KEY, FIVE_TUPLE, 7, EPOCH)


@pytest.mark.parametrize("after_ms, holds", [
    (-16_001, False), (-16_000, True), (-1, True), (0, True), (64_000, True), (127_999, True),
    (128_000, False), (64 * 64_000, False),
])
def test_a_cookie_holds_until_the_next_epoch_ends(after_ms: int, holds: bool) -> None:
    """And for hosts whose clocks are up to 16 s behind. after_ms: since its epoch began."""
    made = cookie.encode(Secrets(KEY), FIVE_TUPLE, 7, EPOCH, Offer(1460, True, 7))

    found = cookie.check(Secrets(KEY), FIVE_TUPLE, 7, made, EPOCH * 64_000 + after_ms)

    assert found == (cookie.handshake_hash(KEY, FIVE_TUPLE, 7, EPOCH) if holds else None)


@pytest.mark.parametrize("secrets, holds", [
    (Secrets(KEY), True), (Secrets(bytes(16), KEY), True), (Secrets(bytes(16)), False),
    (Secrets(KEY, bytes(16)), True),
])
def test_a_key_is_good_while_it_is_current_or_previous(secrets: Secrets, holds: bool) -> None:
    made = cookie.encode(Secrets(KEY), FIVE_TUPLE, 7, EPOCH, Offer(1460, True, 7))

    assert (cookie.check(secrets, FIVE_TUPLE, 7, made, NOW_MS) is not None) == holds


def test_a_new_cookie_is_made_with_the_current_key_alone() -> None:
    made = cookie.encode(Secrets(bytes(16), KEY), FIVE_TUPLE, 7, EPOCH, Offer(1460, True, 7))

    assert cookie.check(Secrets(bytes(16)), FIVE_TUPLE, 7, made, NOW_MS)
    assert not cookie.check(Secrets(KEY), FIVE_TUPLE, 7, made, NOW_MS)


def test_hardly_any_guess_holds() -> None:
    """Two epochs, 24 bits: of 20,000 guesses 0.002 would."""
    made = cookie.encode(Secrets(KEY), FIVE_TUPLE, 7, EPOCH, Offer(1460, True, 7))

    held = [
        guess for guess in range(1, 20_000)
        if cookie.check(Secrets(KEY), FIVE_TUPLE, 7, made + (guess << 8) & 0xFFFFFFFF, NOW_MS)
    ]

    assert held == []


@pytest.mark.parametrize("now_ms, epoch", [(0, 0), (63_999, 0), (64_000, 1), (2**32 * 64_000, 0)])
def test_an_epoch_lasts_64_seconds(now_ms: int, epoch: int) -> None:
    assert cookie.epoch_at(now_ms) == epoch
