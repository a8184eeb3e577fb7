"""What both programs share: the wire, the cookie, and the care for the host they run on."""

__version__ = "0.1.0"
