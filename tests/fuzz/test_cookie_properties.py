"""Properties of cookies: what they say, for whom and for how long they hold."""

from hypothesis import example, given
from hypothesis import strategies as st

from common.cluster import cookie
from tests.fuzz.packets import U8, U16, U32
from tests.golden.hashes import siphash_2_4

KEY = st.binary(min_size=16, max_size=16)
FIVE_TUPLE = st.binary(min_size=12, max_size=12)
EITHER = FIVE_TUPLE | st.binary(min_size=36, max_size=36)  # of IPv4, or IPv6


@given(KEY, FIVE_TUPLE, U32, U32)
def test_the_mac_is_siphash_of_the_flow(
    key: bytes, five_tuple: bytes, client_isn: int, epoch: int
) -> None:
    message = five_tuple + client_isn.to_bytes(4) + epoch.to_bytes(4)

    whole = siphash_2_4(key, message)
    assert cookie.handshake_hash(key, five_tuple, client_isn, epoch) == whole
    assert cookie.mac(key, five_tuple, client_isn, epoch) == whole & 0xFFFFFF


@given(KEY, KEY, EITHER, U32, U32, U16, st.booleans(), st.none() | U8)
@example(bytes(16), bytes(16), bytes(12), 0, 0, 0, False, None)
@example(bytes(16), bytes(16), bytes(12), 0, 2**32 - 1, 65535, True, 15)
def test_a_cookie_holds_for_two_epochs_and_says_what_was_offered(
    key: bytes, other_key: bytes, five_tuple: bytes, client_isn: int, epoch: int, mss: int,
    sack: bool, wscale: int | None,
) -> None:
    began_ms = epoch * 64_000
    secrets = cookie.Secrets(key)
    made = cookie.encode(secrets, five_tuple, client_isn, epoch, cookie.Offer(mss, sack, wscale))

    assert 0 <= made < 2**32
    assert all(
        cookie.check(secrets, five_tuple, client_isn, made, began_ms + after_ms)
        for after_ms in (-16_000, 0, 63_999, 127_999)
    )
    assert cookie.check(cookie.Secrets(other_key, key), five_tuple, client_isn, made, began_ms)
    read = cookie.decode(made, five_tuple)
    assert read.sack == sack
    assert read.wscale == (None if wscale is None else min(wscale, 14))
    table = cookie.MSS_IPV4 if len(five_tuple) == 12 else cookie.MSS_IPV6
    assert read.mss == max((entry for entry in table if entry <= mss), default=table[0])


@given(KEY, FIVE_TUPLE, U32, U32, st.integers(0, 159), st.integers(2, 2**32 - 2))
def test_a_cookie_holds_for_its_flow_alone(
    key: bytes, five_tuple: bytes, client_isn: int, epoch: int, bit: int, epochs: int
) -> None:
    """With 24 bits one of 2**24 others would: none of these does."""
    secrets = cookie.Secrets(key)
    made = cookie.encode(secrets, five_tuple, client_isn, epoch, cookie.Offer(1460, True, 7))
    flow = int.from_bytes(five_tuple + client_isn.to_bytes(4) + (made >> 8 << 8).to_bytes(4))
    other = (flow ^ 1 << bit).to_bytes(20) if bit >= 8 else (flow ^ 0x100).to_bytes(20)

    now_ms = epoch * 64_000

    assert not cookie.check(secrets, five_tuple, client_isn, made, now_ms + epochs * 64_000)
    assert not cookie.check(
        secrets, other[:12], int.from_bytes(other[12:16]), int.from_bytes(other[16:]), now_ms
    )
    changed = bytes([key[0] ^ 1]) + key[1:]
    assert not cookie.check(cookie.Secrets(changed), five_tuple, client_isn, made, now_ms)
