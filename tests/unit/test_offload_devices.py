"""How the program runs at an interface whose frames leave by others."""

import socket

import pytest

from balancer.config import Config
from balancer.offload import devices
from common.bpf.links import Mode
from common.engine.devices import Device
from common.settings import ConfigError

BOND = Device(3, "bond0", "bond", 1500, bytes(6), 0, 0, True, True)
VETH = Device(4, "eth1", "veth", 1500, bytes(6), BOND.ifindex, 0, False, True)
HARDWARE = VETH._replace(name="eth2", kind="", takes_frames=True)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """The host's interfaces."""
    found = [BOND]

    class Devices:
        def all(self) -> list[Device]:
            return found

        def get(self, index: int) -> Device:
            return next(device for device in found if device.ifindex == index)

        def close(self) -> None:
            pass

    monkeypatch.setattr(devices, "Devices", Devices)
    monkeypatch.setattr(socket, "if_nametoindex", lambda name: BOND.ifindex)
    return found


@pytest.mark.parametrize("slave, mode", [(VETH, Mode.GENERIC), (HARDWARE, None)])
def test_a_bonds_slaves_say_whether_a_program_may_run_in_the_driver(
    host: list[Device], slave: Device, mode: Mode | None
) -> None:
    host.append(slave)

    assert devices.wanted_mode("auto", "bond0", []) is mode


def test_native_is_refused_where_a_slave_loses_what_is_sent_back(host: list[Device]) -> None:
    host.append(VETH)

    with pytest.raises(ConfigError, match="by eth1 is lost"):
        devices.refusal(Config(services=(), interface="bond0", xdp="native"))


def test_another_bonds_slaves_say_nothing(host: list[Device]) -> None:
    host.append(VETH._replace(master=9))

    assert devices.wanted_mode("auto", "bond0", []) is None
    assert not devices.refusal(Config(services=(), interface="bond0", xdp="native"))
