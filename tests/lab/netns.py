"""Parts of a test inside a host of the lab."""

import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import netns

from lab.node import Node

TCP, UDP = 6, 17


@contextmanager
def inside(node: Node) -> Iterator[None]:
    """This thread is on the host. Sockets that it opens stay there."""
    netns.pushns(node.namespace)
    try:
        yield
    finally:
        netns.popns()


def udp_socket(node: Node, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
    """A bound socket on a host."""
    with inside(node):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    made.settimeout(2)
    return made


def received(server: socket.socket) -> list[bytes]:
    """All datagrams that have arrived."""
    server.setblocking(False)
    found = []
    while True:
        try:
            found.append(server.recv(65536))
        except BlockingIOError:
            return found


def rules(node: Node) -> list[str]:
    """Firewall rules of a host, and all that bears our name."""
    saved = node.run(["iptables-save"]) + node.run(["iptables-legacy-save"], check=False)
    tables = node.run(["nft", "list", "ruleset"], check=False).split("table ")
    return [
        *(line for line in saved.splitlines() if line.startswith("-A") or "L3DSR" in line),
        *(line for table in tables if table.startswith("ip l3dsr") for line in table.splitlines()),
    ]


def state(node: Node) -> list[str]:
    """What the programs may change on a host."""
    sysctls = ("net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv4.ip_forward")
    return [
        *rules(node),
        *node.run(["ip", "-4", "-o", "addr"]).splitlines(),
        *node.run(["sysctl", *sysctls]).splitlines(),
        *map(str, Path("/run/l3dsr").glob(f"*.{node.inode}.*")),
        *map(str, Path("/run/l3dsr").glob(f"*@{node.namespace}.*")),
    ]


def python(code: str, *words: str) -> list[str]:
    """A command line that runs code with this Python, in the project's directory."""
    return [sys.executable, "-c", code, *words]


def ipv4_packet(
    source: str, destination: str, protocol: int, content: bytes, tos: int = 0
) -> bytes:
    """A whole packet; the kernel fills in the header's checksum."""
    return struct.pack(
        "!BBHHHBBH4s4s", 0x45, tos, 20 + len(content), 1, 0x4000, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    ) + content


def udp_packet(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """A datagram from port 1000, without checksum."""
    head = struct.pack("!HHHH", 1000, port, 8 + len(payload), 0)
    return ipv4_packet(source, destination, UDP, head + payload)


def tcp_packet(
    source: str, destination: str, port: int, flags: int, *, sport: int = 1000, seq: int = 1,
    ack: int = 0, payload: bytes = b"", tos: int = 0,
) -> bytes:
    """A segment with a valid checksum."""
    head = struct.pack("!HHIIBBHHH", sport, port, seq, ack, 5 << 4, flags, 65535, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(
        "!HH", TCP, len(head) + len(payload))
    octets = pseudo + head + payload
    octets += bytes(len(octets) % 2)
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:16] + struct.pack("!H", 0xFFFF - total) + head[18:]
    return ipv4_packet(source, destination, TCP, head + payload, tos)


