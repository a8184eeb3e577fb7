"""Kinds of service: what is done with the packets of one.

A mode has what it needs of the data path: the flows, the secrets, the counters. More kinds stand
beside `split` here, and a service's `kind` says which is its.
"""

from collections.abc import Callable
from typing import Protocol

from balancer.config import Config
from balancer.flows import BackendFlow
from balancer.modes.split.hold import Marks
from balancer.modes.split.mode import Split
from balancer.pool.pool import Backend
from balancer.services import ServiceState
from common.cluster.cookie import Secrets
from common.counters import Counters, Sample
from common.flow.store import FlowStore
from common.verdict import Verdict
from common.wire.icmp import Quote
from common.wire.tcp import Segment


class Mode(Protocol):
    """What a data path does with the packets of one kind of service. Pure: times are given."""

    secrets: Secrets
    clock_offset_ms: int  # unix time − the times that are given

    def configure(self, config: Config) -> None:
        """Go by these settings from now on, as far as they are not fixed at the start."""

    def on_packet(self, segment: Segment, service: ServiceState, now_ms: int) -> Verdict:
        """Decide about a packet of a service."""

    def on_tick(self, now_ms: int) -> list[bytes]:
        """What time alone brings about, ten times a second. Returns: packets to send."""

    def backend_of(self, quote: Quote, service: ServiceState) -> Backend | None:
        """Whose a packet is that an ICMP error quotes."""

    def samples(self) -> list[Sample]:
        """What there is to be seen besides what is counted."""


MODES: dict[str, Callable[[Config, Secrets, FlowStore[BackendFlow], Counters, Marks], Mode]] = {
    "split": Split,
}
