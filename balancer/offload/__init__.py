"""The fast engine: programs at XDP, and what they share with the daemon."""
