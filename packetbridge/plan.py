"""What another configuration would change at a bridge."""

from collections.abc import Iterator

from common.settings.plan import Change, Plan, compare, drained, members
from packetbridge.config import Config, Service


def plan_of(old: Config, new: Config) -> Plan:
    """From one configuration to the other. A service is known by its VIP and port."""
    return Plan(tuple(_changes(old, new)))


def _changes(old: Config, new: Config) -> Iterator[Change]:
    def added(service: Service) -> Change:
        return Change(f"service {service.name}", "", f"is added, DSCP {service.dscp}, server "
                      f"{service.server}:{service.server_port}")

    yield from compare(old, new)
    yield from members(
        {service.endpoint: service for service in old.services},
        {service.endpoint: service for service in new.services},
        changes=lambda before, after: compare(before, after, f"service {after.name}"), added=added,
        removed=lambda service: Change(
            f"service {service.name}", "", f"is removed; {drained(new.drain_timeout_ms)}"))
