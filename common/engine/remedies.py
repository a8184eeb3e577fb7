"""Says which drops and resets there are that should not be, and what to do about each.

It looks at counters, not at packets, so it holds for both engines, and the worst flood is a line of
each kind in a minute.
"""

import logging
from typing import NamedTuple

from common.counters import Counters
from common.engine.log import fields
from common.verdict import DropReason

EVERY_MS = 60_000  # between two lines of a kind
_LOOK_MS = 1000
log = logging.getLogger(__name__)


class Remedy(NamedTuple):
    """least: so many are worth a line. text: follows the number of packets."""

    least: int
    text: str


_LIMITED = ("packets were dropped: more than the portable engine can handle of {}; the line with "
            "`ready` says what the fast engine cannot do here")
REMEDIES = {
    DropReason.TABLE_FULL: Remedy(
        1, "new clients were reset: the flow table is full of open flows; raise max_flows, unless "
           "this is a flood"),
    DropReason.NO_BACKEND: Remedy(
        1, "clients were reset: every backend of their service has weight 0 or is down; look at "
           "the servers, or set all_down = \"use all\""),
    DropReason.TAKEOVER_LIMITED: Remedy(
        100, "packets of flows that are not in the table were dropped: more than takeover_rate "
             "allows; raise it if another balancer has just failed, else they are forged"),
    DropReason.GUESSES_LIMITED: Remedy(
        100, "first segments without timestamps were dropped: somebody is guessing cookies; real "
             "clients without timestamps have to try again"),
    DropReason.LIMITED_FLOW: Remedy(1, _LIMITED.format("flows that are unusual")),
    DropReason.LIMITED_HELD: Remedy(1, _LIMITED.format("requests in many segments")),
    DropReason.LIMITED_FIRST: Remedy(1, _LIMITED.format("first segments without a whole key")),
    DropReason.LIMITED_NO_WAY: Remedy(
        1, "packets were dropped: the fast engine does not reach their backend, and the portable "
           "one cannot handle so many; look at ip route get and ip neigh for it"),
    DropReason.FRAGMENT: Remedy(
        100, "fragments were dropped: senders, or a tunnel on the way, have to fit the path's MTU"),
    DropReason.IP_OPTIONS: Remedy(
        100, "packets with IP options were dropped: their senders have to leave these out"),
    DropReason.TTL_EXPIRED: Remedy(
        100, "packets had no TTL left: look for a routing loop between balancer and bridges"),
    DropReason.BAD_CHECKSUM: Remedy(
        100, "damaged packets were dropped: look at ethtool -S and the cables, or at a sender that "
             "leaves checksums to a NIC that does not make them"),
    DropReason.TRUNCATED: Remedy(
        1, "packets were longer than the packet queue can hold: ethtool -K INTERFACE gro off lro "
           "off"),
    DropReason.COOKIE_SPENT: Remedy(
        100, "first segments came again after their connections had ended, and were not executed "
             "again: somebody replays them, or the network delivers copies late"),
}


class Remedies:
    """Looks at a program's counters."""

    def __init__(self) -> None:
        self._told = dict.fromkeys(REMEDIES, 0)
        self._next_ms = dict.fromkeys(REMEDIES, 0)
        self._next_look_ms = 0

    def begin(self, counters: Counters) -> None:
        """What is counted up to now was said by an earlier instance."""
        self._told = {reason: counters.get(reason, 0) for reason in REMEDIES}

    def on_tick(self, counters: Counters, now_ms: int) -> None:
        """Say what there is to be said."""
        if now_ms < self._next_look_ms:
            return
        self._next_look_ms = now_ms + _LOOK_MS
        for reason, remedy in REMEDIES.items():
            new = counters.get(reason, 0) - self._told[reason]
            if now_ms < self._next_ms[reason] or not new:
                continue
            self._told[reason] += new
            self._next_ms[reason] = now_ms + EVERY_MS
            if new >= remedy.least:
                log.warning("%d %s", new, remedy.text,
                            extra=fields(event="packets_dropped", reason=reason.value, count=new))
