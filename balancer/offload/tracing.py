"""The program once more, with the same maps, that tells what it decides.

It takes the place of the one that has the packets while somebody traces, so that nobody else pays.
"""

from collections.abc import Collection
from ipaddress import IPv4Network

from common.bpf import build
from common.bpf.objects import Object, Program
from common.bpf.reasons import numbered
from common.verdict import Reason

TRACE_MAPS = ("trace_wishes", "trace_counts", "trace_drafts", "decisions")
PROGRAM_NAME = "on_packet"
_TENTHS = 10  # in a second


class Tracing:
    """The program that tells. reasons: by its numbers."""

    def __init__(
        self, original: Object, client: IPv4Network, reasons: Collection[Reason], rate: int
    ) -> None:
        """original: whose maps it has; loaded.

        client: network of sources. reasons: that are wanted. rate: most decisions in a second.
        Raises: BpfError, BuildError.
        """
        self._object = Object(build.object_of("balancer", "balancer"))
        try:
            self._object.join(original, own=TRACE_MAPS)
            self._object.set_variable("is_traced", True)
            self._object.set_variable("is_watched", True)
            self._object.select(PROGRAM_NAME)
            self._object.load()
            self.reasons = numbered(self._object.btf)
            self._wishes = self._object.map("trace_wishes")
            self._wish = {
                "network": client.network_address.packed, "mask": client.netmask.packed,
                "most": max(1, rate // _TENTHS),
                "reasons": bytes(
                    self.reasons[number] in reasons for number in sorted(self.reasons)),
            }
            self._decisions = self._object.map("decisions")
            self._counts = self._object.map("trace_counts")
        except BaseException:
            self._object.close()
            raise

    @property
    def program(self) -> Program:
        """What takes the place of the other one."""
        return self._object.program(PROGRAM_NAME)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Of the ring of decisions, and of the map with how many were lost."""
        return self._decisions.fd, self._counts.fd

    def allow_until(self, until_ms: int) -> None:
        """Tell of packets up to then. until_ms: of the engine's clock."""
        self._wishes.update(0, {**self._wish, "until_ms": until_ms})

    def close(self) -> None:
        """Let go of it."""
        self._wishes.close()
        self._counts.close()
        self._decisions.close()
        self._object.close()
