"""The last hour's numbers: what has become of counts between two looks."""

from balancer.control.history import Point, Totals, between, median_s
from common.histogram import Histogram


def trips(*durations_ms: float) -> list[int]:
    made = Histogram()
    for duration_ms in durations_ms:
        made.note(duration_ms)
    return made.counts


def test_rates_are_of_the_time_between() -> None:
    before = Totals(100.0, 7, 1000, 50_000, 0.002, trips(1))

    point = between(before, Totals(110.0, 9, 1250, 80_000, 0.001, trips(1, 20, 30, 3000)))

    assert point == Point(110.0, 9, 25.0, 3000.0, 0.001, 0.032)


def test_counters_that_began_anew_have_counted_nothing() -> None:
    point = between(Totals(100.0, 7, 1000, 50_000, None, trips(5, 5)), Totals(110.0))

    assert point == Point(110.0, 0, 0, 0, None, None)


def test_services_add_up_and_the_slowest_check_is_any_of_theirs() -> None:
    whole = Totals(5.0).plus(Totals(0.0, 1, 2, 3, None, trips(4))).plus(
        Totals(0.0, 10, 20, 30, 0.5, trips(4, 8)))

    assert whole == Totals(5.0, 11, 22, 33, 0.5, trips(4, 4, 8))


def test_a_median_is_the_bound_that_half_are_within() -> None:
    assert median_s(trips()) is None
    assert median_s(trips(3)) == 0.004
    assert median_s(trips(1, 1, 100)) == 0.001
    assert median_s(trips(10_000, 10_000, 1)) is None
