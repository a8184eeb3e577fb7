"""What the doctor finds: facts alone, which `diagnose` judges."""

from typing import NamedTuple

from common.cluster.probe import Served, Sighting
from common.doctor.ask import Replied


class Handoff(NamedTuple):
    """What became of a connection of the balancer's own, handed over as a client's is.

    is_taken: the server has accepted it. is_passed: and answered what a check expects. words: how
              it ended. is_refused: by the server.
    own:      what the bridge saw of it. client: what it saw of a packet like it from a client's
              address; None: not looked at.
    """

    is_taken: bool = False
    is_passed: bool = False
    is_refused: bool = False
    words: str = ""
    own: Sighting | None = None
    client: Sighting | None = None


class OfService(NamedTuple):
    """A service at one of its backends. tagged: the reply to a probe with its DSCP."""

    name: str
    backend: int
    vip_end: str
    dscp: int
    wscale: int
    tagged: Replied
    handoff: Handoff | None = None


class OfBridge(NamedTuple):
    """A bridge. plain: the reply to a probe without a DSCP. pings: whether its host answers.

    served: all services that it has. link_mtu: of the first link; path_mtu: of the whole path, as
    measured; mss: what SYN-ACKs offer then.
    """

    address: str
    probe_port: int
    plain: Replied
    pings: bool
    served: tuple[Served, ...] = ()
    services: tuple[OfService, ...] = ()
    link_mtu: int = 0
    path_mtu: int = 0
    mss: int = 0

    @property
    def name(self) -> str:
        """As operators know it."""
        ids = {service.backend for service in self.services}
        return f"backend {ids.pop()}" if len(ids) == 1 else f"the bridge at {self.address}"


class Asker(NamedTuple):
    """Who asks the bridges. keys: fingerprints. client: the address that handoffs with a client's
    address were tried with, as text.
    """

    keys: tuple[bytes, ...]
    client: str


class OfHost(NamedTuple):
    """This host. xdp: `native`, `generic`, or empty where no program is there.

    is_running: whether the balancer runs. why_portable: what speaks against the fast engine.
    others: VIPs that another host has, each with its Ethernet address. keys, client: as of Asker.
    """

    interface: str
    is_running: bool
    engine: str
    xdp: str
    why_portable: str
    why_generic: str
    joins_packets: bool
    is_synchronised: bool
    others: tuple[tuple[str, str], ...]
    keys: tuple[bytes, ...]
    client: str

    @property
    def asker(self) -> Asker:
        """What of it matters to bridges."""
        return Asker(self.keys, self.client)


class Findings(NamedTuple):
    """All of it."""

    host: OfHost
    bridges: tuple[OfBridge, ...]
