"""Flows: where they are kept, and those that nobody knows."""
