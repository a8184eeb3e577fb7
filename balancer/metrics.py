"""The balancer's metrics."""

import socket

from balancer.pool.pool import Backend
from common import metrics
from common.counters import Metric

_OF_BACKEND = ("service", "backend", "address")

HELD_FLOWS = Metric("held_flows", "gauge", "Flows waiting for the rest of their key")
MSS = Metric(
    "mss_bytes", "gauge", "MSS that SYN-ACKs offer", ("service",),
    "If it is less than the configured one, a path to a backend is narrow; the log says which.")
HANDSHAKE_DURATION = Metric(
    "handshake_duration_seconds", "histogram",
    "Time from the SYN-ACK to the client's first data", ("service",),
    "Of clients with timestamps: their round trip, for those that speak at once. The clock that "
    "they echo has 10 bits, so it is modulo 1.024 s.")
NEXT_HOP_UP = Metric(
    "next_hop_up", "gauge", "0 where a next hop to backends does not answer", ("address",))
BACKEND_FLOWS = Metric(
    "backend_flows", "gauge", "Flows in the table, by backend", _OF_BACKEND,
    "Exact at any time, also right after a restart.")
BACKEND_HANDOFFS = Metric(
    "backend_handoffs", "counter", "New flows sent to a backend", _OF_BACKEND)
BACKEND_UNANSWERED = Metric(
    "backend_unanswered", "counter", "Handoffs that clients have repeated, having heard nothing",
    _OF_BACKEND,
    "A lost packet now and then; of one backend many: packets do not get there, or not back.")
BACKEND_PACKETS = Metric(
    "backend_packets", "counter", "Packets sent to a backend", _OF_BACKEND)
BACKEND_BYTES = Metric("backend_bytes", "counter", "Bytes sent to a backend", _OF_BACKEND)
BACKEND_FIRST_ACK = Metric(
    "backend_first_ack_seconds", "histogram",
    "Time from the handoff to the client's first acknowledgement", _OF_BACKEND,
    "How long the backend took to answer, and a round trip of the client's. Of requests that the "
    "handoff has whole, since further segments of a longer one come before any answer.")
BACKEND_UP = Metric(
    "backend_up", "gauge", "Whether a backend passes its checks", _OF_BACKEND)
BACKEND_STATE = Metric(
    "backend_state", "gauge", "The state that a backend is in", (*_OF_BACKEND, "state"),
    "Always 1: `up`, `down`, `draining`, `leaving`, `disabled`.")
BACKEND_SHARE = Metric(
    "backend_share_ratio", "gauge", "A backend's share of its service's new flows, from 0 to 1",
    _OF_BACKEND)
BACKEND_CHECKS = Metric(
    "backend_checks", "counter", "Health checks by result", (*_OF_BACKEND, "result"),
    "`passed` or `failed`.")
BACKEND_CHECK_DURATION = Metric(
    "backend_check_duration_seconds", "histogram", "How long checks took that were passed",
    _OF_BACKEND)
BACKEND_LAST_CHECK = Metric(
    "backend_last_check_duration_seconds", "gauge",
    "How long the last check took that was passed", _OF_BACKEND)

METRICS = (
    *metrics.METRICS, HELD_FLOWS, MSS, HANDSHAKE_DURATION, NEXT_HOP_UP, BACKEND_FLOWS,
    BACKEND_HANDOFFS, BACKEND_UNANSWERED, BACKEND_PACKETS, BACKEND_BYTES, BACKEND_FIRST_ACK,
    BACKEND_UP, BACKEND_STATE, BACKEND_SHARE, BACKEND_CHECKS, BACKEND_CHECK_DURATION,
    BACKEND_LAST_CHECK,
)


def labels_of(backend: Backend) -> tuple[str, str, str]:
    """The labels of a backend's metrics."""
    return backend.service.config.name, str(backend.id), socket.inet_ntoa(backend.address)
