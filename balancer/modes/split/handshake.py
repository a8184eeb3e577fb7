"""The handshake, answered without state: SYN to SYN-ACK, and the check of what follows.

Source: RFC 9293 §3.5; RFC 4987 §3.6 (SYN cookies); RFC 7323 §2.2, §3.2 (options).
Twin:   balancer/offload/bpf/handshake.h
"""

from balancer.config import Service
from balancer.modes.split.hold import Held
from common.cluster import cookie, stamps
from common.cluster.cookie import Offer, Secrets
from common.wire import five_tuple, options, tcp
from common.wire.options import Options
from common.wire.seq import add

WINDOW = 65535  # of the SYN-ACK, which is never scaled (RFC 7323 §2.2)


def answer_syn(
    segment: tcp.Segment, offered: Options, service: Service, mss: int, secrets: Secrets,
    now_ms: int,
) -> bytes:
    """The SYN-ACK for a client's SYN: its options as offered, as far as the service has them.

    offered: what its options say. mss: ours; it fits the paths to the backends.

    A payload (TCP Fast Open) is not acknowledged, so the client sends it again
    (RFC 7413 §3). ECN is not agreed to: a cookie has no room to remember it.
    """
    made = cookie.handshake_hash(
        secrets.current, segment.five_tuple, segment.seq, cookie.epoch_at(now_ms))
    accepted = Options(
        mss=mss,
        sack=offered.sack and service.sack,
        wscale=service.wscale if offered.wscale is not None else None,
        timestamps=(
            (stamps.t0(made, now_ms), offered.timestamps[0])
            if offered.timestamps and service.timestamps else None
        ),
    )
    client_mss = offered.mss if offered.mss is not None else options.MSS_DEFAULT
    cookie_isn = cookie.of_hash(
        made, segment.five_tuple, Offer(client_mss, accepted.sack, offered.wscale))
    return tcp.emit(
        five_tuple.reverse(segment.five_tuple), cookie_isn, add(segment.seq, 1), tcp.SYN | tcp.ACK,
        window=WINDOW, option_octets=options.emit(accepted),
    )


def check_cookie(segment: tcp.Segment, secrets: Secrets, now_ms: int) -> int | None:
    """The hash of the handshake of ours that this segment is the first after, if it is.

    That is so where cookie(seq−1) = ack−1. This test, not "unknown flow", opens a flow. A second
    segment that overtook the first fails it and waits for its retransmission.
    """
    if not segment.flags & tcp.ACK:
        return None
    return cookie.check(
        secrets, segment.five_tuple, add(segment.seq, -1), add(segment.ack, -1), now_ms)


def echoes_t0(segment: tcp.Segment, handshake_hash: int, accepts_version_1: bool) -> bool:
    """Whether the segment echoes our SYN-ACK's TSval, if it has timestamps.

    accepts_version_1: then a clock alone will do, as balancers of version 1 told it.
    """
    timestamps = segment.timestamps
    if timestamps is None:
        return True
    tsecr = timestamps[1]
    return stamps.is_t0(handshake_hash, tsecr) or (
        accepts_version_1 and 0 < tsecr <= stamps.T0_VERSION_1_MASK)


def answer_fin(segment: tcp.Segment) -> bytes:
    """End a connection whose client closed it without a word: acknowledge its FIN, send ours.

    The client's last ACK then fits no cookie and no flow, and is dropped.
    """
    return tcp.emit(
        five_tuple.reverse(segment.five_tuple), segment.ack, add(segment.seq, segment.seq_len),
        tcp.FIN | tcp.ACK, window=WINDOW, option_octets=_echo(segment),
    )


def acknowledge(segment: tcp.Segment, held: Held, wscale: int) -> bytes:
    """An ACK for the stream's first octets, in place of a server that is not yet chosen.

    segment: the client's latest. wscale: shift of our windows. The window ends where the
    SYN-ACK's did: no server has promised more (RFC 9293 §3.8.6 discourages taking it back).
    """
    offer = cookie.decode(held.cookie_isn, held.key)
    window = max(WINDOW - held.taken, 0) >> (wscale if offer.wscale is not None else 0)
    sack = options.emit_sack(held.islands(segment)) if offer.sack else b""
    return tcp.emit(
        five_tuple.reverse(segment.five_tuple), add(held.cookie_isn, 1),
        add(held.client_isn, 1 + held.taken), tcp.ACK,
        window=window, option_octets=_echo(segment) + sack,
    )


def _echo(segment: tcp.Segment) -> bytes:
    """The timestamps option that answers the segment's (RFC 7323 §3.2), if it has one."""
    timestamps = segment.timestamps
    if not timestamps:
        return b""
    tsval, tsecr = timestamps
    return options.emit(Options(timestamps=(tsecr, tsval)))
