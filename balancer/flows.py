"""The balancer's flow: which backend has it, and since when.

What a packet says of its flow's end is a hint, since anybody may have sent it (RFC 5961): a later
packet takes it back, and until then it only makes the flow one of the first to be evicted. It
shortens the life of none but flows with timestamps, whose next packet says by itself where it goes.
"""

from balancer.config import Timeouts
from balancer.pool.pool import Backend
from common.cluster.stamps import T0_MASK
from common.flow.store import Flow
from common.wire.seq import add
from common.wire.tcp import FIN, RST, Segment

# States, in the order in which flows are evicted last. DOUBTED: a flow without timestamps whose
# client is said to have ended it. NEW: one that sent nothing after its handoff. TAKEN_OVER: one
# that another balancer began, as its own packets say.
OPEN, DOUBTED, HALF_CLOSED, RESET, NEW, TAKEN_OVER = range(6)
STATES = ("open", "doubted", "half-closed", "reset", "new", "taken-over")  # by number

REUSE_MS = 64_000  # after so long without a packet, ports may be another connection's
QUIET_MS = 2000  # and after so long, where the client is said to have ended it


def timeouts_ms(timeouts: Timeouts) -> tuple[int, ...]:
    """After how long without a packet a flow leaves, by its state."""
    return (timeouts.idle_ms, timeouts.idle_ms, timeouts.half_closed_ms, timeouts.reset_ms,
            timeouts.idle_ms, timeouts.half_closed_ms)


class BackendFlow(Flow):
    """A flow that has its backend.

    client_isn: tells a retransmitted first segment from a new connection.
    ts_shift:   what turns an echo of the SYN-ACK's TSval into one that names the backend.
    created_ms: to see whether the backend's timestamps can have wrapped.
    goes_up:    whether a program leaves all its packets to the data path, which has a handoff to
                repeat until it has seen that the server has it.
    has_timestamps: whether the client's segments have them, so that an echo can be the flow's.
    syn_seen:   whether a SYN without timestamps has come since.
    is_repeated: whether its client has sent the first payload again, having heard nothing.
    noted_seq:  without timestamps, that SYN's ISN; else what comes after the end that was said.
    """

    __slots__ = ("backend", "client_isn", "created_ms", "goes_up", "has_timestamps", "is_repeated",
                 "noted_seq", "syn_seen", "ts_shift")

    def __init__(
        self, key: bytes, backend: Backend, client_isn: int, ts_shift: int, now_ms: int,
        has_timestamps: bool = True,
    ) -> None:
        super().__init__(key, OPEN, now_ms)
        self.backend = backend
        self.client_isn = client_isn
        self.ts_shift = ts_shift
        self.created_ms = now_ms
        self.goes_up = False
        self.has_timestamps = has_timestamps
        self.syn_seen = False
        self.noted_seq = 0
        self.is_repeated = False

    def note_syn(self, client_isn: int) -> None:
        """A SYN without timestamps has come for the flow's ports."""
        self.syn_seen = True
        if not self.has_timestamps:
            self.noted_seq = client_isn

    def has_begun_with(self, segment: Segment) -> bool:
        """Whether a segment is the flow's first one once more; nobody knows that of one that was
        taken over.
        """
        return (self.state != TAKEN_OVER and segment.payload_len > 0
                and add(segment.seq, -1) == self.client_isn)

    def is_unanswered(self, segment: Segment) -> bool:
        """Whether a segment says for the first time that nobody has answered the handoff: it is
        that once more, nothing else has come since, and it echoes no server.

        Twin: balancer/offload/bpf/life.h:is_unanswered
        """
        timestamps = segment.timestamps
        return (self.state == NEW and not self.is_repeated and self.has_begun_with(segment)
                and not segment.flags & (RST | FIN)
                and (timestamps is None or timestamps[1] <= T0_MASK))

    def may_give_way(self, segment: Segment, now_ms: int) -> bool:
        """Whether a segment may be another connection's, so that its cookie need be looked at.

        Any of a large upload would pass for a first payload once in 2**22 times or so. With
        timestamps, a first payload has more to show than its cookie; and that a flow which was
        taken over is one, nothing but its packets says.
        Twin: balancer/offload/bpf/life.h:may_give_way
        """
        if segment.ts_off or self.state == TAKEN_OVER:
            return True
        if self.syn_seen and (self.has_timestamps or self.noted_seq == add(segment.seq, -1)):
            return True
        is_closing = self.state in (DOUBTED, HALF_CLOSED, RESET)
        return now_ms - self.seen_ms >= (QUIET_MS if is_closing else REUSE_MS)


def after(flow: BackendFlow, segment: Segment) -> int:
    """The state of a flow after a packet of it.

    Twin: balancer/offload/bpf/life.h:state_after
    """
    state, flags = flow.state, segment.flags
    if state == TAKEN_OVER:
        return state  # whatever it says, nobody else vouches for it
    if flags & (RST | FIN):
        if not flow.has_timestamps:
            return DOUBTED
        return RESET if flags & RST else HALF_CLOSED
    if state == NEW and segment.payload_len and add(segment.seq, -1) == flow.client_isn:
        return NEW  # its handoff once more
    if state == HALF_CLOSED and not segment.payload_len:
        return state
    if state == DOUBTED and not segment.payload_len and segment.seq == flow.noted_seq:
        return state
    return OPEN


def end_of(segment: Segment) -> int:
    """What a client sends after the end that a FIN or RST says, if it is the client's own."""
    return add(segment.seq, segment.seq_len)
