"""Octets and what they mean, one file a header.

Each header has a view (offsets over octets, nothing copied, nothing judged
but its bounds) made by `checked`, and where we send it, an `emit`. Octets from
the network never raise past this layer: `Malformed` is raised here alone and
becomes a counted drop.
"""

from common.verdict import DropReason


class Malformed(Exception):
    """The octets cannot be carried; `reason` says why."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason
