"""Where the arrays that the balancer's program shares with the daemon have a backend."""

MAX_SERVICES = 64  # that have numbers: also those whose flows go on
MAX_BACKENDS = 128  # of a service; ids have 7 bits at most
CANDIDATES = 1 << 18  # flows that are watched before they are taken over
SNAP_MAX = 2048  # octets of a packet that are told of a decision; bind_snap in bpf/trace.h knows it
RING_OCTETS = 1 << 22  # of decisions that nobody has read yet


def place_of(service: int, backend_id: int) -> int:
    """Where a service's backend stands in arrays.

    Twin: balancer/offload/bpf/maps.h:place_of
    """
    return service * MAX_BACKENDS + backend_id
