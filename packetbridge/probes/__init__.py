"""Answers to doctors: what the bridge has seen of their probes, and what it knows of itself."""
