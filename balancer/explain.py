"""Which backend would it be, and why?"""

from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from balancer.config import Config, Service
from balancer.request import choose_key, extract
from balancer.schedule import make_scheduler


@dataclass(frozen=True, slots=True)
class Answer:
    """The choice for one request. Values are None where the scheduler has no such thing."""

    service: str
    key_spec: str
    key: str
    used_fallback: bool
    hash: str | None
    slot: int | None
    backend: str | None
    runner_up: str | None


def request_for(url: str) -> bytes:
    """The request that curl would send for a URL."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


def explain(service: Service, payload: bytes, source: bytes, sport: int) -> Answer:
    """How `service` would choose for a client whose stream is `payload`."""
    key = choose_key(service.key, service.fallback, payload, source, sport, complete=True)
    direct = extract(service.key, payload, source, sport, complete=True)
    scheduler = make_scheduler(
        service.scheduler, service.backends, hash_balance_factor=service.hash_balance_factor,
        random=Random(0),
    )
    found = scheduler.explain(key)
    names = {backend.id: f"{backend.id} ({backend.address})" for backend in service.backends}
    return Answer(
        service=service.name,
        key_spec=str(service.key),
        key=key.decode("latin-1") if key.isascii() and key.decode().isprintable() else key.hex(),
        used_fallback=direct != key,
        hash=None if found.key_hash is None else f"{found.key_hash:#010x}",
        slot=found.slot,
        backend=names.get(found.backend_id),
        runner_up=names.get(found.runner_up_id),
    )


def find_service(config: Config, name: str | None) -> Service | None:
    """The service called `name`, the first one without a name."""
    if name is None:
        return config.services[0]
    return next((service for service in config.services if service.name == name), None)
