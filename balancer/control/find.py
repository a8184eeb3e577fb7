"""Services and backends by what an operator calls them."""

from collections.abc import Iterable
from ipaddress import IPv4Address

from balancer.pool.pool import Backend, State
from balancer.services import ServiceState


def services_of(services: Iterable[ServiceState], name: object) -> list[ServiceState]:
    """The service of a name; all where there is none. Raises: ValueError, naming those there are.
    """
    services = list(services)
    if name is None:
        return services
    found = [service for service in services if service.config.name == name]
    if not found:
        names = ", ".join(service.config.name for service in services)
        raise ValueError(f"there is no service {str(name)[:100]}; there are: {names}")
    return found


def backends_of(
    services: Iterable[ServiceState], name: object
) -> list[tuple[ServiceState, Backend]]:
    """The backends of an id or address, at least one. Raises: ValueError, naming those there are.
    """
    services = list(services)
    serving = [(service, backend) for service in services for backend in service.pool
               if backend.state is State.SERVING]
    if name is None:
        raise ValueError("backend: an id or an address is needed")
    found = [each for each in serving if is_called(each[1], str(name))]
    if not found:
        names = sorted({(backend.id, str(IPv4Address(backend.address)))
                        for _, backend in serving})[:20]
        raise ValueError(f"there is no backend {str(name)[:100]}; there are: "
                         + ", ".join(f"{id} ({address})" for id, address in names))
    return found


def is_called(backend: Backend, name: str) -> bool:
    """Whether that is its id or address."""
    return name in (str(backend.id), str(IPv4Address(backend.address)))
