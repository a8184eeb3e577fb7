"""What the data path says of a packet: an action, its reason, and packets to send.

The list of reasons is the same in Python, C, logs and metrics.
Twin: common/bpf/include/verdict.h
"""

from enum import Enum, StrEnum
from typing import NamedTuple


class Action(Enum):
    """What becomes of the packet that was looked at."""

    PASS = "pass"  # leave it to the host's own stack
    DROP = "drop"
    SEND = "send"  # drop it, and send `Verdict.packets`
    HOLD = "hold"  # keep it; a later packet or a timer lets it go


class Reason(StrEnum):
    """A name that an operator can read; each has a counter."""

    # StrEnum hashes by calling Python code; these are keys on the packet path.
    __hash__ = str.__hash__


class Event(Reason):
    """Why a packet was passed, held or answered."""

    NOT_OURS = "not_ours"
    # balancer
    SYN_ANSWERED = "syn_answered"
    FIN_ANSWERED = "fin_answered"
    HELD = "held"
    ACKNOWLEDGED = "acknowledged"  # held, and its client told so, which waited for that
    HANDOFF = "handoff"
    FORWARDED = "forwarded"
    TAKEOVER = "takeover"
    # packetbridge
    REPLAYED = "replayed"
    OPENED = "opened"
    CHECK = "check"  # a handoff of the balancer's own, a health check
    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"
    PROBED = "probed"
    # both
    ICMP_FORWARDED = "icmp_forwarded"
    RESET = "reset"


class DropReason(Reason):
    """Why a packet was dropped, and what that means to an operator."""

    # the octets are not what they claim to be: a fault or an attack
    MALFORMED_IP = "malformed_ip"
    MALFORMED_TCP = "malformed_tcp"
    MALFORMED_ICMP = "malformed_icmp"
    BAD_SOURCE = "bad_source"  # a source that no host can have
    BAD_FLAGS = "bad_flags"  # SYN together with ACK, FIN or RST towards the VIP
    BAD_CHECKSUM = "bad_checksum"  # damaged under way, where we would mend it or answer for it
    # sound, but nothing that this path carries
    FRAGMENT = "fragment"
    IP_OPTIONS = "ip_options"
    TTL_EXPIRED = "ttl_expired"
    TRUNCATED = "truncated"  # longer than the packet queue can carry
    # the everyday life of a flow
    HANDSHAKE_ACK = "handshake_ack"  # completes a handshake; nothing to forward yet
    UNKNOWN_FLOW = "unknown_flow"  # no flow yet: overtaken, stale, or forged
    BAD_ECHO = "bad_echo"  # a good cookie, whose timestamps prove nothing: forged, or of version 1
    GUESSES_LIMITED = "guesses_limited"  # more wrong cookies without timestamps than are borne
    COOKIE_SPENT = "cookie_spent"  # a first segment again, when its connection has ended: a replay
    TAKEOVER_LIMITED = "takeover_limited"  # more strangers than `takeover_rate`
    # more of a class than the portable engine can bear; common/bpf/include/allowance.h tells them
    LIMITED_FLOW = "limited_flow"
    LIMITED_HELD = "limited_held"
    LIMITED_FIRST = "limited_first"
    LIMITED_UNFINISHED = "limited_unfinished"
    LIMITED_TAKEOVER = "limited_takeover"
    LIMITED_NO_WAY = "limited_no_way"
    LIMITED_UNKNOWN = "limited_unknown"
    LIMITED_ODD = "limited_odd"
    LIMITED_IP = "limited_ip"
    LIMITED_ICMP = "limited_icmp"
    RESET_UNANSWERED = "reset_unanswered"  # a RST of no flow: never answered
    TABLE_FULL = "table_full"  # of open flows, and more than `new_flow_rate` want in
    NO_BACKEND = "no_backend"  # every backend has weight 0
    REPLAY_PENDING = "replay_pending"  # the server has not answered yet
    REPLAY_DONE = "replay_done"  # the server's half of the replayed handshake
    FLOW_CLOSED = "flow_closed"  # late packet of a flow that was reset
    INTERNAL_ERROR = "internal_error"  # our bug; logged


_OF_BALANCER = frozenset({
    Event.SYN_ANSWERED, Event.FIN_ANSWERED, Event.ACKNOWLEDGED, Event.HANDOFF, Event.FORWARDED,
    Event.TAKEOVER, DropReason.BAD_FLAGS, DropReason.HANDSHAKE_ACK,
    DropReason.TAKEOVER_LIMITED, DropReason.LIMITED_HELD, DropReason.LIMITED_UNFINISHED,
    DropReason.LIMITED_TAKEOVER, DropReason.LIMITED_NO_WAY, DropReason.TABLE_FULL,
    DropReason.NO_BACKEND,
})
_OF_BRIDGE = frozenset({
    Event.REPLAYED, Event.OPENED, Event.TO_SERVER, Event.TO_CLIENT, Event.PROBED,
    DropReason.COOKIE_SPENT, DropReason.REPLAY_PENDING, DropReason.REPLAY_DONE,
    DropReason.FLOW_CLOSED,
})
_OF_THE_OTHER: dict[str, frozenset[Reason]] = {
    "balancer": _OF_BRIDGE, "packetbridge": _OF_BALANCER}


def reasons_of(program: str) -> list[Event | DropReason]:
    """Those that a program can have; what is no program of ours may have all."""
    others = _OF_THE_OTHER.get(program, frozenset())
    return [reason for reason in (*Event, *DropReason) if reason not in others]


class Verdict(NamedTuple):
    """The data path's answer for one packet.

    packets: whole IPv4 packets with valid checksums, in the order to be sent.
    """

    action: Action
    reason: Event | DropReason
    packets: tuple[bytes, ...] = ()


PASS = Verdict(Action.PASS, Event.NOT_OURS)
HELD = Verdict(Action.HOLD, Event.HELD)
DROP = {reason: Verdict(Action.DROP, reason) for reason in DropReason}


def send(reason: Event | DropReason, *packets: bytes) -> Verdict:
    """Drop the packet at hand and send `packets`."""
    return Verdict(Action.SEND, reason, packets)
