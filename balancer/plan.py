"""What another configuration would change at a balancer."""

from collections.abc import Iterator

from balancer.config import Backend, Config, Service
from common.settings.plan import Change, Plan, compare, drained, members


def plan_of(old: Config, new: Config) -> Plan:
    """From one configuration to the other. A service is known by its VIP and port."""
    return Plan(tuple(_changes(old, new)))


def _changes(old: Config, new: Config) -> Iterator[Change]:
    gone = f"is removed; {drained(new.drain_timeout_ms)}"

    def added(service: Service) -> Change:
        backends = ", ".join(map(_named, service.backends))
        return Change(f"service {service.name}", "", f"is added, with {backends}")

    yield from compare(old, new)
    yield from members(
        {service.endpoint: service for service in old.services},
        {service.endpoint: service for service in new.services},
        changes=lambda before, after: _of_service(before, after, gone), added=added,
        removed=lambda service: Change(f"service {service.name}", "", gone))


def _of_service(old: Service, new: Service, gone: str) -> Iterator[Change]:
    """gone: how it is said of a backend that is removed."""
    where = f"service {new.name}"
    yield from compare(old, new, where)
    yield from members(
        {backend.id: backend for backend in old.backends},
        {backend.id: backend for backend in new.backends},
        changes=lambda before, after: compare(before, after, f"{where}, backend {after.id}"),
        added=lambda backend: Change(
            f"{where}, {_named(backend)}", "", f"is added, weight {backend.weight}"),
        removed=lambda backend: Change(f"{where}, {_named(backend)}", "", gone))


def _named(backend: Backend) -> str:
    return f"backend {backend.id} ({backend.address})"
