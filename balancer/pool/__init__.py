"""Backends, and who of them gets the next flow."""
