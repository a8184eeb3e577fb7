"""The connection is split: the balancer answers the handshake, a backend the first payload."""
