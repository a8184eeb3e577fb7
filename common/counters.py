"""What the data path counts, for metrics and logs."""

from collections import defaultdict

from common.verdict import DropReason, Event


class Counters:
    """Counts since the start.

    reasons:  packets by what became of them.
    services: for each service (and, in the balancer, each backend of it) named values.
    """

    def __init__(self) -> None:
        self.reasons: defaultdict[Event | DropReason, int] = defaultdict(int)
        self.services: dict[str, dict[str, int]] = {}
