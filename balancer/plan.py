"""What another configuration would change at a balancer."""

from collections.abc import Iterator

from balancer.config import Backend, Config, Service
from common.settings.plan import Change, Plan, compare, drained


def plan_of(old: Config, new: Config) -> Plan:
    """From one configuration to the other. A service is known by its VIP and port."""
    return Plan(tuple(_changes(old, new)))


def _changes(old: Config, new: Config) -> Iterator[Change]:
    yield from compare(old, new)
    before = {service.endpoint: service for service in old.services}
    after = {service.endpoint: service for service in new.services}
    for endpoint, service in after.items():
        if endpoint in before:
            yield from _of_service(before[endpoint], service, new.drain_timeout_ms)
        else:
            backends = ", ".join(map(_named, service.backends))
            yield Change(f"service {service.name}", "", f"is added, with {backends}")
    for endpoint, service in before.items():
        if endpoint not in after:
            yield Change(f"service {service.name}", "",
                         f"is removed; {drained(new.drain_timeout_ms)}")


def _of_service(old: Service, new: Service, drain_ms: int) -> Iterator[Change]:
    where = f"service {new.name}"
    yield from compare(old, new, where)
    before = {backend.id: backend for backend in old.backends}
    after = {backend.id: backend for backend in new.backends}
    for id, backend in after.items():
        if id in before:
            yield from compare(before[id], backend, f"{where}, backend {id}")
        else:
            yield Change(f"{where}, {_named(backend)}", "", f"is added, weight {backend.weight}")
    for id, backend in before.items():
        if id not in after:
            yield Change(f"{where}, {_named(backend)}", "", f"is removed; {drained(drain_ms)}")


def _named(backend: Backend) -> str:
    return f"backend {backend.id} ({backend.address})"
