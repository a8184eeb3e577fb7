"""The bridge's metrics."""

from common import metrics
from common.counters import Metric

HELD_BYTES = Metric("held_bytes", "gauge", "Bytes waiting for a server to answer")
HANDOFFS_REFUSED = Metric(
    "handoffs_refused", "counter", "First data segments whose cookie does not hold", ("cause",),
    "Of at most 10 a second that are looked at; see [below](#handoffs-that-are-refused).")
CLOCK_AHEAD = Metric(
    "balancer_clock_ahead_seconds", "gauge",
    "How far a balancer's clock is ahead of this host's, where handoffs are refused for that",
    more="Negative: behind.")
ADOPTED_FLOWS = Metric(
    "adopted_flows", "gauge", "Connections that the server's stack has adopted", ("service",),
    "Counted among the host's sockets when somebody asks; they are not in `flows`.")

METRICS = (*metrics.METRICS, HELD_BYTES, HANDOFFS_REFUSED, CLOCK_AHEAD, ADOPTED_FLOWS)
