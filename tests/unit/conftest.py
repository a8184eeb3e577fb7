"""Hosts as settings see them, in place of the one that the tests run on."""

from collections.abc import Callable
from ipaddress import IPv4Interface

import pytest

from common.settings import host
from common.settings.host import HostView

SetHost = Callable[..., None]


@pytest.fixture
def set_host(monkeypatch: pytest.MonkeyPatch) -> SetHost:
    """Makes a host of `interface="ADDRESS/PREFIX …"`, which has `lo` besides."""
    def set_to(**interfaces: str) -> None:
        seen = {name: tuple(map(IPv4Interface, addresses.split()))
                for name, addresses in {"lo": "127.0.0.1/8", **interfaces}.items()}
        monkeypatch.setattr(host, "look", lambda is_certain=True: HostView(seen, is_certain))
    return set_to


@pytest.fixture
def balancer_host(set_host: SetHost) -> None:
    """The balancer of the Vagrantfile's network."""
    set_host(eth0="198.51.100.11/24", eth1="192.168.33.11/24")


@pytest.fixture
def backend_host(set_host: SetHost) -> None:
    """The first backend there."""
    set_host(eth0="192.0.2.20/24 192.0.2.30/24", eth1="192.168.33.20/24 192.168.33.30/24")
