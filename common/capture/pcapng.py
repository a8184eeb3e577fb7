"""Writes pcapng files of raw IP, whose packets have comments; Wireshark shows these.

Source: draft-ietf-opsawg-pcapng: section header, interface description and enhanced packet blocks.
"""

import struct
from typing import BinaryIO

from common.capture.pcap import RAW

_BLOCK = struct.Struct("=II")
_SECTION = struct.Struct("=IHHq")
_INTERFACE = struct.Struct("=HHI")
_PACKET = struct.Struct("=IIIII")
_OPTION = struct.Struct("=HH")
_SECTION_TYPE, _INTERFACE_TYPE, _PACKET_TYPE = 0x0A0D0D0A, 1, 6
_BYTE_ORDER_MAGIC, _UNKNOWN_LEN = 0x1A2B3C4D, -1
_END, _COMMENT, _INTERFACE_NAME, _RESOLUTION, _APPLICATION = 0, 1, 2, 9, 4
_NANOSECONDS = b"\x09"  # ten to the power of minus that
_MOST_COMMENT = 4096  # octets


class Writer:
    """One section with one interface."""

    def __init__(self, file: BinaryIO, interface: str, application: str) -> None:
        """file: that is written from here on, and is the caller's. Raises: OSError."""
        self._file = file
        self._write(_SECTION_TYPE, _SECTION.pack(_BYTE_ORDER_MAGIC, 1, 0, _UNKNOWN_LEN)
                    + _options((_APPLICATION, application.encode())))
        self._write(_INTERFACE_TYPE, _INTERFACE.pack(RAW, 0, 0) + _options(
            (_INTERFACE_NAME, interface.encode()), (_RESOLUTION, _NANOSECONDS)))

    def add(self, time_ns: int, packet: bytes, whole_len: int, comment: str) -> None:
        """Write a packet. time_ns: unix time. whole_len: octets that it had. Raises: OSError."""
        head = _PACKET.pack(0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(packet),
                            max(whole_len, len(packet)))
        text = comment.encode("utf-8", "replace")[:_MOST_COMMENT].decode("utf-8", "ignore")
        self._write(_PACKET_TYPE, head + _padded(packet) + _options((_COMMENT, text.encode())))

    def _write(self, kind: int, body: bytes) -> None:
        length = struct.pack("=I", _BLOCK.size + len(body) + 4)
        self._file.write(struct.pack("=I", kind) + length + body + length)


def _options(*options: tuple[int, bytes]) -> bytes:
    return b"".join(_OPTION.pack(code, len(value)) + _padded(value)
                    for code, value in (*options, (_END, b"")))


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)
