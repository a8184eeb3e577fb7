"""The control socket, and what else answers HTTP: the server, what all programs say, the client."""

PREFIX = "/api/v1/"  # of paths
