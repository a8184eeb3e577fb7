"""Commands that look, and handle no packet."""
