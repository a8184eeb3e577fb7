"""The metrics that both programs have."""

from common.counters import Metric

PACKETS = Metric(
    "packets", "counter", "Packets by outcome", ("reason",),
    "All reasons that the program can have are there from the start; see [below](#reasons).")
FLOWS = Metric("flows", "gauge", "Flows in the table")
FLOWS_LIMIT = Metric("flows_limit", "gauge", "Flows that the table has room for")
FLOWS_EVICTED = Metric(
    "flows_evicted", "counter", "Flows evicted to make room for new ones",
    more="`max_flows` is too small, or this is an attack.")
PACKETS_LOST = Metric(
    "packets_lost", "counter", "Packets lost before the program could read them", ("where",),
    "The portable engine is too slow: `queue` and `socket` are the kernel's, in that order.")
SEND_FAILURES = Metric(
    "send_failures", "counter", "Packets that the kernel refused to send",
    more="The log says why.")
REPAIRS = Metric(
    "repairs", "counter", "What the program put right on its host", ("what",),
    "All kinds are there from the start; see [below](#what-it-repairs).")
RELOADS = Metric(
    "reloads", "counter", "Configurations that were read while running", ("result",),
    "`taken` or `refused`; the log says why.")

METRICS = (PACKETS, FLOWS, FLOWS_LIMIT, FLOWS_EVICTED, PACKETS_LOST, SEND_FAILURES,
           REPAIRS, RELOADS)
