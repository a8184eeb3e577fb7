"""The fast engine: the program at XDP, and the portable engine behind it on the same tables.

The program answers SYNs, forwards flows and hands over requests that it can read within one
segment; all else it leaves alone, and the portable engine's rules bring it to the data path here,
which reads and writes the program's tables.
"""

from random import Random

from balancer.config import Config
from balancer.datapath import Datapath, ServiceState
from balancer.flows import Backend
from balancer.offload.flow_store import MapFlows
from balancer.offload.held_marks import MarkedHolds
from balancer.offload.maps import place_of
from balancer.offload.program import Program
from common.cluster.cookie import Secrets
from common.verdict import Verdict

REFRESH_MS = 1000


class FastDatapath(Datapath):
    """The portable data path on the program's tables."""

    def __init__(
        self, config: Config, secrets: Secrets, program: Program, *, random: Random
    ) -> None:
        self.program = program
        super().__init__(config, secrets, random=random)
        timeouts = config.timeouts
        numbers: dict[Backend, int] = {}
        places: dict[tuple[int, int], Backend] = {}
        states: list[ServiceState] = list(self.services.values())
        for number, state in enumerate(states):
            for backend in state.backends.values():
                numbers[backend] = number
                places[number, backend.id] = backend
        self.flows: MapFlows = MapFlows(  # type: ignore[assignment]
            program.flows, (timeouts.idle_ms, timeouts.half_closed_ms, timeouts.reset_ms), places,
            numbers.__getitem__, self._forget_flow,
        )
        self.holds = MarkedHolds(config.hold_octets_total, program.marks, program.held_count)
        self._places = places
        self._paths_told = -1
        self.is_live = False  # whether the program has packets, whose counts are to be added
        self._next_refresh_ms = 0
        self._sent: dict[tuple[int, int], dict[str, int]] = {}

    @property
    def secrets(self) -> Secrets:
        """Which cookies hold, here and in the program."""
        return self._secrets

    @secrets.setter
    def secrets(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self.program.set_secrets(secrets)

    def tell_paths(self) -> None:
        """Tell the program the ways to the backends, and what follows, if they have changed."""
        if self._paths_told == self.paths.version:
            return
        self._paths_told = self.paths.version
        for (number, backend_id), backend in self._places.items():
            self.program.set_next_hop(number, backend_id, self.paths[backend.address].hop)
        for number, service in enumerate(self.services.values()):
            self.program.set_mss(number, service.mss)

    def on_packet(self, packet: bytes, now_ms: int) -> Verdict:
        """As Datapath, for what the program has left alone."""
        self.flows.now_ms = now_ms
        verdict = super().on_packet(packet, now_ms)
        self.flows.flush()
        return verdict

    def on_tick(self, now_ms: int) -> list[bytes]:
        """As Datapath; ways, clock and counters are kept up to date."""
        self.flows.now_ms = now_ms
        packets = super().on_tick(now_ms)
        self.tell_paths()
        if not self.is_live:
            return packets
        if not 0 <= self._next_refresh_ms - now_ms <= REFRESH_MS:
            self._next_refresh_ms = now_ms + REFRESH_MS
            self.program.keep_time(now_ms)
            self.add_counts()
        return packets

    def add_counts(self) -> None:
        """Add what the program has counted since the last call."""
        self.program.reasons.add_to(self.counters)
        for place, backend in self._places.items():
            per_cpu = self.program.traffic.lookup(place_of(*place))
            totals = {name: sum(getattr(each, name) for each in per_cpu)
                      for name in ("packets", "octets", "handoffs")}
            before = self._sent.get(place, {})
            for name, total in totals.items():
                setattr(backend, name, getattr(backend, name) + total - before.get(name, 0))
            self._sent[place] = totals
