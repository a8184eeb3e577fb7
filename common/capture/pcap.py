"""Captures: IPv4 packets out of pcap and pcapng files, and into pcap files of raw IP.

Reading is scapy's work (imported only here, and only when a capture is read);
link headers are taken off here: Ethernet with any VLAN tags, raw IP, and
Linux's two cooked forms. A sender whose NIC cuts its segments is captured
before that, and then its packets may have no length yet: the frame's counts.

Source: draft-ietf-opsawg-pcap (file format); tcpdump.org/linktypes.html.
"""

import logging
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.wire.ipv4 import with_length

ETHERNET, RAW, LINUX_SLL, IPV4, LINUX_SLL2 = 1, 101, 113, 228, 276
_RAW_TYPES = (RAW, IPV4, 12, 14)  # 12 and 14: DLT_RAW as some systems write it
_READ_TYPES = frozenset((ETHERNET, LINUX_SLL, LINUX_SLL2, *_RAW_TYPES))
_LINK_NAMES = {  # of those that tcpdump and Wireshark write, beside the ones that are read here
    0: "BSD loopback", 6: "token ring", 9: "PPP", 10: "FDDI", 50: "PPP in HDLC", 51: "PPPoE",
    104: "Cisco HDLC", 105: "IEEE 802.11", 107: "frame relay", 108: "OpenBSD loopback",
    109: "encrypted OpenBSD", 117: "OpenBSD pflog", 119: "IEEE 802.11 with Prism header",
    127: "IEEE 802.11 with radiotap header", 129: "ARCnet", 163: "IEEE 802.11 with AVS header",
    187: "Bluetooth HCI", 189: "USB of Linux", 192: "per-packet information",
    195: "IEEE 802.15.4", 201: "Bluetooth HCI", 220: "USB of Linux", 227: "CAN", 229: "raw IPv6",
    239: "NFLOG", 247: "InfiniBand", 249: "USB of Windows", 253: "netlink", 258: "macOS pktap",
}
_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPES_VLAN = (0x8100, 0x88A8, 0x9100)

_FILE_HEADER = struct.Struct("=IHHiIII")
_RECORD_HEADER = struct.Struct("=IIII")
_MAGIC_US = 0xA1B2C3D4
_SNAP_LEN = 262144
_US_NS = 1000


class CaptureError(Exception):
    """The file cannot be read as a capture."""


class Captured(NamedTuple):
    """One frame of a capture.

    time_ns: unix time. packet: from the IP header on, None where the frame holds no IPv4, or
    none that can be read. cut_len: octets that the capture left out (its snap length).
    unread: the frame's link type by name and number, if it is one that cannot be read.
    """

    time_ns: int
    packet: bytes | None
    cut_len: int = 0
    unread: str = ""


def read(path: str | Path) -> Iterator[Captured]:
    """The frames of a pcap or pcapng file, gzipped or not. Raises: OSError, CaptureError."""
    logging.getLogger("scapy.runtime").setLevel(logging.ERROR)  # it warns of routes at import
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader, RawPcapReader

    try:
        reader = RawPcapReader(str(path))
    except (Scapy_Exception, EOFError) as error:
        raise CaptureError(str(error)) from None
    return _frames(reader, isinstance(reader, RawPcapNgReader))


def _frames(reader: Any, is_ng: bool) -> Iterator[Captured]:
    with reader:
        for frame, meta in reader:
            if is_ng:
                link, time_ns = meta.linktype, _time_of_block_ns(meta)
            else:
                link = reader.linktype
                time_ns = meta.sec * 10**9 + meta.usec * (1 if reader.nano else _US_NS)
            link &= 0xFFFF  # above it: whether frames end in a check sequence
            cut_len = max(meta.wirelen - len(frame), 0)
            packet = ipv4_of(link, frame)
            if packet is not None:
                packet = with_length(packet, len(packet) + cut_len)
            unread = "" if link in _READ_TYPES else f"{_LINK_NAMES.get(link, 'link type')} ({link})"
            yield Captured(time_ns, packet, cut_len, unread)


def write(path: str | Path, packets: Iterable[tuple[int, bytes]]) -> int:
    """Write (unix time in ns, IPv4 packet) pairs as a pcap of raw IP; return how many."""
    count = 0
    with Path(path).open("wb") as file:
        file.write(_FILE_HEADER.pack(_MAGIC_US, 2, 4, 0, 0, _SNAP_LEN, RAW))
        for time_ns, packet in packets:
            seconds, rest_ns = divmod(time_ns, 10**9)
            file.write(_RECORD_HEADER.pack(seconds, rest_ns // _US_NS, len(packet), len(packet)))
            file.write(packet)
            count += 1
    return count


def ipv4_of(link: int, frame: bytes) -> bytes | None:
    """The IPv4 packet in a frame of link type `link`, None where there is none."""
    if link in _RAW_TYPES:
        return frame if frame and frame[0] >> 4 == 4 else None
    if link == ETHERNET:
        type_off = 12
    elif link == LINUX_SLL:
        type_off = 14
    elif link == LINUX_SLL2:
        return frame[20:] if frame[:2] == b"\x08\x00" else None
    else:
        return None
    while int.from_bytes(frame[type_off:type_off + 2], "big") in _ETHERTYPES_VLAN:
        type_off += 4
    if int.from_bytes(frame[type_off:type_off + 2], "big") != _ETHERTYPE_IPV4:
        return None
    return frame[type_off + 2:]


def _time_of_block_ns(meta: Any) -> int:
    """A pcapng timestamp; simple packet blocks have none."""
    if meta.tshigh is None:
        return 0
    return (meta.tshigh << 32 | meta.tslow) * 10**9 // meta.tsresol
