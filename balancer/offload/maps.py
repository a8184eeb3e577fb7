"""Where the arrays that the balancer's program shares with the daemon have a backend."""

MAX_SERVICES = 64  # that have numbers: also those whose flows go on
MAX_BACKENDS = 128  # of a service; ids have 7 bits at most
CANDIDATES = 1 << 18  # flows that are watched before they are taken over


def place_of(service: int, backend_id: int) -> int:
    """Where a service's backend stands in arrays.

    Twin: balancer/offload/bpf/maps.h:place_of
    """
    return service * MAX_BACKENDS + backend_id
