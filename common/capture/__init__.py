"""Captures: read, run through a data path, written."""
