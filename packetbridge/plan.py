"""What another configuration would change at a bridge."""

from collections.abc import Iterator

from common.settings.plan import Change, Plan, compare, drained
from packetbridge.config import Config


def plan_of(old: Config, new: Config) -> Plan:
    """From one configuration to the other. A service is known by its VIP and port."""
    return Plan(tuple(_changes(old, new)))


def _changes(old: Config, new: Config) -> Iterator[Change]:
    yield from compare(old, new)
    before = {service.endpoint: service for service in old.services}
    after = {service.endpoint: service for service in new.services}
    for endpoint, service in after.items():
        if endpoint in before:
            yield from compare(before[endpoint], service, f"service {service.name}")
        else:
            server = f"{service.server}:{service.server_port}"
            yield Change(f"service {service.name}", "",
                         f"is added, DSCP {service.dscp}, server {server}")
    for endpoint, service in before.items():
        if endpoint not in after:
            yield Change(f"service {service.name}", "",
                         f"is removed; {drained(new.drain_timeout_ms)}")
