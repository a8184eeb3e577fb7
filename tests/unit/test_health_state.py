"""Up and down by results in a row, flapping, and ramps."""

from balancer.health.settings import Check
from balancer.health.state import Health
from balancer.pool.share import RAMP_STEPS

CHECK = Check(kind="http", rise=2, fall=3, ramp_ms=16_000)


def told(health: Health, results: str, at_ms: float = 0) -> str:
    """The state after each result: + passed, - failed."""
    states = ""
    for place, result in enumerate(results):
        health.note(result == "+", at_ms + place)
        states += "U" if health.is_up else "D"
    return states


def test_the_first_check_of_all_decides() -> None:
    assert told(Health(CHECK), "-++--+") == "DDUUUU"
    assert told(Health(CHECK), "+--+") == "UUUU"


def test_it_takes_fall_failures_in_a_row_and_rise_successes() -> None:
    assert told(Health(CHECK), "+--+--+---+-++--") == "UUUUUUUUUDDDDUUU"


def test_one_result_is_enough_where_that_is_said() -> None:
    assert told(Health(Check(rise=1, fall=1)), "+-+") == "UDU"


def test_who_keeps_falling_has_to_prove_itself_for_longer() -> None:
    health = Health(CHECK)

    assert told(health, "+---" + "++") == "UUUDDU"
    assert told(health, "---" + "++++", 100) == "UUDDDDU"
    assert told(health, "---" + "+" * 8, 200) == "UUD" + "D" * 7 + "U"
    for round_number in range(5):
        told(health, "---" + "+" * 32, 300 + 100 * round_number)
    assert health.needed(1000) == 32
    assert health.needed(1000 + 600_000) == 2


def test_a_ramp_goes_from_a_part_to_the_whole() -> None:
    health = Health(CHECK)
    assert health.steps(0) == RAMP_STEPS  # at the start there is none

    told(health, "---++", 0)

    assert [health.steps(4 + second * 1000) for second in (0, 1, 8, 14.999, 15, 16, 60)] == \
        [1, 2, 9, 15, 16, 16, 16]
    told(health, "---", 100_000)
    assert health.steps(200_000) == RAMP_STEPS


def test_without_a_ramp_a_share_is_whole_at_once() -> None:
    health = Health(Check(rise=1, fall=1))
    told(health, "-+")

    assert health.steps(1) == RAMP_STEPS
