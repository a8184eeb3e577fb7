"""The fast engine: programs at tc, and what they share with the daemon."""
