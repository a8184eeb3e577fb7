"""What balancers and bridges must agree on about timestamps (docs/wire.md)."""

MIN_ROUND_TRIP_MS, MAX_ROUND_TRIP_MS = 1, 333  # of a handshake, as the handoff's echo tells it
