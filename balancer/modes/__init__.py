"""Kinds of service: what is done with a packet once its service is known."""
