"""How connections reach the server."""
