"""What settings need to know of the host. Nothing is changed."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from common.cluster.secrets import SecretFile, load
from common.settings import ConfigError


@dataclass(frozen=True, slots=True)
class HostView:
    """A host's interfaces, each with its IPv4 addresses, the first one first.

    is_certain: whether it is the host that the settings are for. `check` cannot know that: if the
                interface is not there, they may be for another one.
    """

    interfaces: Mapping[str, tuple[IPv4Interface, ...]]
    is_certain: bool = True

    def addresses_of(self, interface: str) -> list[IPv4Address]:
        """The addresses of one interface."""
        return [address.ip for address in self.interfaces.get(interface, ())]

    def where(self, address: IPv4Address) -> tuple[str, IPv4Interface] | None:
        """The interface that has an address, and the address with its prefix."""
        return next(((name, own) for name, owns in self.interfaces.items() for own in owns
                     if own.ip == address), None)

    @property
    def usable(self) -> list[str]:
        """The interfaces that packets can come in by."""
        return sorted(set(self.interfaces) - {"lo"})


def look(is_certain: bool = True) -> HostView:
    """See this host's interfaces and addresses. is_certain: as HostView's."""
    from pyroute2 import IPRoute  # `--help` needs nothing that has to be installed

    interfaces: dict[str, tuple[IPv4Interface, ...]] = {}
    names = dict(socket.if_nameindex())
    with IPRoute() as netlink:
        for index, name in names.items():
            interfaces[name] = tuple(
                IPv4Interface((entry.get_attr("IFA_LOCAL"), entry["prefixlen"]))
                for entry in netlink.get_addr(family=socket.AF_INET, index=index)
            )
    return HostView(interfaces, is_certain)


def check_secret(file: str, path: str) -> SecretFile:
    """Read the secret file. Raises: ConfigError, with the remedy."""
    try:
        return load(path)
    except PermissionError as error:
        how = f"chown root {path}" if "user" in str(error) else f"chmod 600 {path}"
        remedy = f"a file that this user or root has, and alone may read ({error}): {how}"
        raise ConfigError(file, "secret_file", path, remedy) from None
    except OSError as error:
        remedy = f"the cluster's secret ({error.strerror}): make one with `balancer keygen {path}`"
        raise ConfigError(file, "secret_file", path, remedy) from None
    except ValueError as error:
        remedy = f"one or two lines of 32 hex digits ({error}): see `balancer keygen`"
        raise ConfigError(file, "secret_file", path, remedy) from None


def check_rights(program: str) -> None:
    """Raises: ConfigError unless the process may change the network."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    net_admin, net_raw = 1 << 12, 1 << 13
    if not effective & net_admin or not effective & net_raw:
        raise ConfigError(
            program, "user", os.geteuid(),
            f"root, or the capabilities NET_ADMIN and NET_RAW: sudo {program}",
        )
