"""The share of new flows that a backend gets: its weight, and what operator, health and ramp leave.

Schedulers know nothing of health: they choose among shares, which stand in the weights' place.
"""

from collections.abc import Iterable, Mapping
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol

RAMP_STEPS = 16  # each makes the tables anew
_MOST = 65535  # what a program's table has room for


class Operator(Enum):
    """What the operator wants of a backend."""

    ENABLED = "enabled"
    DRAINING = "draining"  # no new flows; those that it has continue
    DISABLED = "disabled"  # nor these


class Standing(NamedTuple):
    """What there is to be said of a backend besides its weight.

    steps:  how far its ramp is, 1..RAMP_STEPS.
    weight: what the operator wants instead of the configured one.
    """

    operator: Operator = Operator.ENABLED
    is_up: bool = True
    steps: int = RAMP_STEPS
    weight: int | None = None


class State(StrEnum):
    """A backend's state, in one word."""

    UP = "up"
    DOWN = "down"
    DRAINING = "draining"
    LEAVING = "leaving"
    DISABLED = "disabled"


class Policy(NamedTuple):
    """What a service wants. resets: the open flows of backends that are down."""

    use_all: bool = True
    resets: bool = False


class Member(Protocol):
    """What is needed of a backend."""

    @property
    def id(self) -> int: ...
    @property
    def weight(self) -> int: ...
    @property
    def standing(self) -> Standing: ...


class Share(NamedTuple):
    """A backend as schedulers see it. weight: its share."""

    id: int
    weight: int


class Shares(NamedTuple):
    """What follows for all backends of a service.

    weights: their shares, by id. cut: ids of those whose flows are reset.
    """

    weights: Mapping[int, int]
    cut: frozenset[int]


def state_of(standing: Standing, is_leaving: bool) -> State:
    """The word for it; what the operator wants comes before what is found."""
    if is_leaving:
        return State.LEAVING
    if standing.operator is Operator.ENABLED:
        return State.UP if standing.is_up else State.DOWN
    return State(standing.operator.value)


def weight_of(member: Member) -> int:
    """What counts: the operator's weight, else the configured one."""
    return member.weight if member.standing.weight is None else member.standing.weight


def shares_of(members: Iterable[Member], policy: Policy) -> Shares:
    """The shares of backends that are configured.

    Where all that could have new flows are down, either all of them have as if they were up, or
    none has any. While nobody's ramp is on its way, shares are the weights.
    """
    members = list(members)
    weights = {each.id: weight_of(each) for each in members}
    enabled = [each for each in members if each.standing.operator is Operator.ENABLED]
    is_used = [each for each in enabled if each.standing.is_up]
    all_used = policy.use_all and not any(weights[each.id] for each in is_used)
    if all_used:
        found = {each.id: weights[each.id] for each in enabled}
    elif all(each.standing.steps == RAMP_STEPS for each in is_used):
        found = {each.id: weights[each.id] for each in is_used}
    else:
        found = _bounded({each.id: weights[each.id] * each.standing.steps for each in is_used})
    cut = {each.id for each in members if each.standing.operator is Operator.DISABLED}
    if policy.resets and not all_used:
        cut |= {each.id for each in members if not each.standing.is_up}
    return Shares({each.id: found.get(each.id, 0) for each in members}, frozenset(cut))


def _bounded(shares: dict[int, int]) -> dict[int, int]:
    """In the same proportions, none above what there is room for; what is not 0 stays so."""
    most = max(shares.values(), default=0)
    if most <= _MOST:
        return shares
    return {id: share and max(share * _MOST // most, 1) for id, share in shares.items()}
