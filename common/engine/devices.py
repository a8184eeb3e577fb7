"""What network interfaces are, and what they can do with frames that the stack never sees.

Source: linux/if_link.h, linux/netdev.h (the family `netdev`, Linux 6.3), linux/ethtool.h
"""

import array
import fcntl
import socket
import struct
from typing import NamedTuple

from common.engine.netlink import DUMP, NETLINK_GENERIC, Answer, Netlink, attributes_in

_GETLINK = 18
_LINK = struct.Struct("=BBHiII")  # ifinfomsg
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_LINKINFO = 18
_INFO_KIND = 1
_DEV_GET, _DEV_IFINDEX, _DEV_XDP_FEATURES = 1, 1, 3
_NDO_XMIT = 1 << 2  # NETDEV_XDP_ACT_NDO_XMIT: frames that are redirected to it leave
_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_SIOCETHTOOL, _ETHTOOL_GFLAGS = 0x8946, 0x25
_ETH_FLAG_RXVLAN, _ETH_FLAG_LRO = 1 << 8, 1 << 15
# Where the kernel cannot be asked. Hardware has no kind; a veth depends on its peer.
_TAKERS = ("", "bond", "tun")


class Device(NamedTuple):
    """An interface. kind: `veth`, `bond` …; empty for hardware.

    master, link: their ifindex, 0 for none.
    takes_frames: whether frames that a program redirects to it leave by it. is_told: by the kernel;
                  before Linux 6.3 it is a guess.
    """

    ifindex: int
    name: str
    kind: str
    mtu: int
    mac: bytes
    master: int
    link: int
    takes_frames: bool
    is_told: bool


class Devices:
    """Looks interfaces up, and waits for the kernel."""

    def __init__(self) -> None:
        """Raises: OSError."""
        self._route = Netlink()
        self._generic = Netlink(NETLINK_GENERIC)

    def close(self) -> None:
        """Close the sockets."""
        self._route.close()
        self._generic.close()

    def get(self, index: int) -> Device:
        """An interface by its index. Raises: OSError."""
        return self._device(self._route.ask(_GETLINK, _LINK.pack(0, 0, 0, index, 0, 0))[0])

    def all(self) -> list[Device]:
        """All of them. Raises: OSError."""
        return [self._device(answer)
                for answer in self._route.ask(_GETLINK, _LINK.pack(0, 0, 0, 0, 0, 0), flags=DUMP)]

    def _device(self, answer: Answer) -> Device:
        found = answer.attributes
        index = _LINK.unpack(answer.fixed)[3]
        kind = attributes_in(found.get(_IFLA_LINKINFO, b"")).get(_INFO_KIND, b"")
        kind_name = kind.rstrip(b"\0").decode()
        return Device(
            index, found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(), kind_name,
            _number(found.get(_IFLA_MTU)), found.get(_IFLA_ADDRESS, b""),
            _number(found.get(_IFLA_MASTER)), _number(found.get(_IFLA_LINK)),
            *self._takes_frames(index, kind_name),
        )

    def _takes_frames(self, index: int, kind: str) -> tuple[bool, bool]:
        """`takes_frames` and `is_told`."""
        try:
            answer = self._generic.ask_generic(
                "netdev", _DEV_GET, {_DEV_IFINDEX: _U32.pack(index)})
            return bool(_U64.unpack(answer[_DEV_XDP_FEATURES])[0] & _NDO_XMIT), True
        except (OSError, LookupError):
            return kind in _TAKERS, False


def strips_tags(name: str) -> bool:
    """Whether an interface takes VLAN tags off before a program sees the frame."""
    return bool(_flags(name) & _ETH_FLAG_RXVLAN)


def joins_packets(name: str) -> bool:
    """Whether an interface makes one packet of several before anything sees them (LRO)."""
    return bool(_flags(name) & _ETH_FLAG_LRO)


def _flags(name: str) -> int:
    """An interface's flags of ethtool; 0: it knows nothing of them."""
    value = array.array("I", [_ETHTOOL_GFLAGS, 0])
    request = struct.pack("16sP", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            fcntl.ioctl(probe, _SIOCETHTOOL, request)
        except OSError:
            return 0
    return value[1]


def _number(octets: bytes | None) -> int:
    return int(_U32.unpack(octets)[0]) if octets else 0
