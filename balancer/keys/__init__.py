"""Keys, taken from the first octets of a stream."""
