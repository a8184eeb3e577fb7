"""What is believed of the paths to the backends, and for how long."""

from test_pool import NOW_MS, VIP, backend, balancer, ends, handoff, where

from balancer.paths import LEARNT_MS, LEAST_MTU, UNKNOWN, NextHop, Paths, Route
from common.wire import icmp, tcp
from common.wire.family import look
from common.wire.tcp import ACK

FIRST, SECOND = b"\x0a\0\0\1", b"\x0a\0\0\2"
HOP = NextHop(7, 1500, b"\2" * 6, b"\4" * 6)
NOW = 1_700_000_000_000


def _paths(mtu: int = 1500) -> Paths:
    paths = Paths([FIRST, SECOND])
    paths.set_routes({address: Route(b"\x0a\0\0\x0b", mtu, HOP) for address in paths})
    return paths


def test_nothing_is_known_at_first_and_the_mss_is_as_configured() -> None:
    paths = Paths([FIRST])

    assert (paths[FIRST].own_address, paths[FIRST].hop) == (b"", UNKNOWN)
    assert paths.mss(3960, [FIRST]) == 3960


def test_the_mss_fits_the_smallest_path_and_is_never_larger_than_configured() -> None:
    paths = _paths()
    paths.learn(SECOND, 1400, NOW)

    assert paths.mss(1460, [FIRST]) == 1460
    assert paths.mss(3960, [FIRST]) == 1460
    assert paths.mss(1460, [FIRST, SECOND]) == 1360
    assert paths.mss(1000, [FIRST, SECOND]) == 1000


def test_the_next_hop_takes_what_the_whole_path_takes() -> None:
    paths = _paths()
    paths.learn(FIRST, 1400, NOW)

    assert paths[FIRST].hop == HOP._replace(mtu=1400)
    assert paths[SECOND].hop == HOP


def test_what_is_learnt_lasts_for_ten_minutes_since_it_was_said_last() -> None:
    paths = _paths()
    paths.learn(FIRST, 1400, NOW)
    paths.learn(FIRST, 1450, NOW + 1000)  # wider than what is believed: no reason to
    paths.learn(FIRST, 1400, NOW + 300_000)

    paths.expire(NOW + LEARNT_MS)
    lasting = paths[FIRST].mtu
    paths.expire(NOW + 300_000 + LEARNT_MS)

    assert (lasting, paths[FIRST].mtu) == (1400, 1500)


def test_a_clock_that_is_set_back_makes_nothing_last_for_ever() -> None:
    paths = _paths()
    paths.learn(FIRST, 1400, NOW)

    paths.expire(NOW - 3_600_000)

    assert paths[FIRST].mtu == 1500


def test_a_packet_that_arrived_whole_ends_what_was_learnt() -> None:
    paths = _paths()
    paths.learn(FIRST, 1400, NOW)

    paths.is_whole(FIRST)

    assert paths[FIRST].mtu == 1500


def test_nobody_makes_a_path_narrower_than_every_host_must_take() -> None:
    paths = _paths()

    paths.learn(FIRST, 68, NOW)

    assert paths[FIRST].mtu == LEAST_MTU


def test_the_version_tells_changes_and_nothing_else() -> None:
    paths = _paths()
    before = paths.version
    paths.set_routes({FIRST: paths[FIRST].route})
    paths.learn(FIRST, 1500, NOW)
    paths.expire(NOW)
    same = paths.version
    paths.learn(FIRST, 1400, NOW)

    assert (same, paths.version > before) == (before, True)


def test_what_is_longer_than_its_path_is_answered_in_the_vips_name() -> None:
    """Also of a flow that began before that was known, whatever the kernel knows of the path."""
    datapath = balancer(backend(1))
    (one,) = datapath.services.backends()
    where(handoff(datapath, 1))
    long = tcp.emit(ends(1), 5000, 6000, ACK, payload=bytes(1400))
    assert where(datapath.on_packet(long, NOW_MS)) == 1

    datapath.learn_path_mtu(one, 1400, NOW_MS)
    verdict = datapath.on_packet(long, NOW_MS)
    shorter = tcp.emit(ends(1), 5000, 6000, ACK, payload=bytes(1360))

    (answer,) = verdict.packets
    told = look(answer)
    assert (told.src, told.dst) == (VIP.packed, ends(1)[:4])
    assert icmp.Quote(told).next_hop_mtu == 1400
    assert where(datapath.on_packet(shorter, NOW_MS)) == 1
