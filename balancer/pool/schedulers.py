"""The schedulers' names, for the configuration; balancer/pool/schedule.py has what they do."""

HASHING = ("maglev", "rendezvous")
SCHEDULERS = (*HASHING, "round-robin", "random", "least-flows")
