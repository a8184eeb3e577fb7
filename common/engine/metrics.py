"""The counters for Prometheus, where they are asked for."""

import asyncio
import socket

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.control.forms import Asked, Content, Handler
from common.engine.collector import Collector, Observed
from common.settings import ConfigError

_BACKLOG = 128


def handler(program: str, observed: Observed) -> Handler:
    """What answers `/metrics`."""
    registry = CollectorRegistry()
    registry.register(Collector(program, observed))

    async def handle(_: Asked) -> Content:
        loop = asyncio.get_running_loop()
        octets = await loop.run_in_executor(None, generate_latest, registry)
        return Content(octets, CONTENT_TYPE_LATEST)

    return handle


def listen(file: str, address: str, port: int) -> socket.socket:
    """Listen where metrics are asked for. Raises: ConfigError, naming `file`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        made = socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        remedy = f"an address and port of this host that are free ({error.strerror or error})"
        raise ConfigError(file, "metrics", f"{address}:{port}", remedy) from None
    made.setblocking(False)
    return made
