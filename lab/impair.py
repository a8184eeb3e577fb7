"""A bad wire: loss, duplicates, reordering and delay between two interfaces.

Not every kernel has netem, so this carries frames from one interface to the
other in user space. Which packets suffer is drawn from a seed, in each direction
for itself: the n-th packet of a direction meets the same fate in every run. ARP
is spared, since a lost ARP packet stops everything for a second.

    python -m lab.impair NEAR FAR --loss 0.05 --seed 7
"""

import argparse
import heapq
import itertools
import random
import select
import socket
import time
from dataclasses import asdict, dataclass

_ETH_P_ALL = 3
_ETHERTYPE_IPV4 = b"\x08\x00"
_SOL_PACKET, _PACKET_IGNORE_OUTGOING, _PACKET_QDISC_BYPASS = 263, 23, 20
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 64 << 20
_FRAME_MAX = 16384
_BATCH = 64
DIRECTIONS = ("both", "out", "in")


@dataclass(frozen=True)
class Impairment:
    """What a wire does to packets.

    loss, duplicate, reorder: shares of the packets, 0..1.
    reorder_ms: how much later a reordered packet comes.
    delay_ms:   how much later every packet comes.
    direction:  `out` (from the node), `in` (to it) or `both`.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_ms: float = 5.0
    delay_ms: float = 0.0
    direction: str = "both"
    seed: int = 1

    def flags(self) -> list[str]:
        """The command line that says this."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in asdict(self).items()]


class Fates:
    """The fates of the packets of one direction, one after the other."""

    def __init__(self, impairment: Impairment, direction: str) -> None:
        self._wire = impairment
        self._applies = impairment.direction in ("both", direction)
        self._random = random.Random(f"{impairment.seed} {direction}").random

    def next(self) -> list[float]:
        """The delays in ms at which copies of the next packet come out; none if it is lost."""
        wire = self._wire
        if not self._applies:
            return [0.0]
        # Three draws a packet, whatever comes of them: then the n-th fate depends on n alone.
        lost, again, late = self._random(), self._random(), self._random()
        if lost < wire.loss:
            return []
        delay = wire.delay_ms + (wire.reorder_ms if late < wire.reorder else 0.0)
        return [delay, wire.delay_ms] if again < wire.duplicate else [delay]


class Relay:
    """Carries frames between two interfaces until the process is ended."""

    def __init__(self, near: socket.socket, far: socket.socket, impairment: Impairment) -> None:
        self._ways = {
            near.fileno(): (near, far, Fates(impairment, "out")),
            far.fileno(): (far, near, Fates(impairment, "in")),
        }
        self._late: list[tuple[float, int, socket.socket, bytes]] = []
        self._order = itertools.count()

    def run(self) -> None:
        """Never returns."""
        poll = select.poll()
        for number in self._ways:
            poll.register(number, select.POLLIN)
        while True:
            wait_ms = None
            if self._late:
                wait_ms = max(0.0, (self._late[0][0] - time.monotonic()) * 1000)
            for number, _ in poll.poll(wait_ms):
                self._carry(*self._ways[number])
            self._send_late()

    def _carry(self, source: socket.socket, target: socket.socket, fates: Fates) -> None:
        receive = source.recv
        for _ in range(_BATCH):
            try:
                frame = receive(_FRAME_MAX)
            except BlockingIOError:
                return
            if frame[12:14] != _ETHERTYPE_IPV4:
                _send(target, frame)
                continue
            for delay_ms in fates.next():
                if delay_ms:
                    due = time.monotonic() + delay_ms / 1000
                    heapq.heappush(self._late, (due, next(self._order), target, frame))
                else:
                    _send(target, frame)

    def _send_late(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._late)
            _send(target, frame)


def _send(target: socket.socket, frame: bytes) -> None:
    try:
        target.send(frame)
    except OSError:  # a full queue or a link that is down: a wire loses it
        pass


def open_interface(name: str) -> socket.socket:
    """A socket for the frames that come in at an interface, and to send there."""
    channel = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    channel.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    channel.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    channel.bind((name, _ETH_P_ALL))
    channel.setblocking(False)
    return channel


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="lab.impair", description="A bad wire.")
    parser.add_argument("near", help="interface towards the node")
    parser.add_argument("far", help="interface towards the network")
    for name, default in asdict(Impairment()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default,
                            choices=DIRECTIONS if name == "direction" else None)
    values = vars(parser.parse_args())
    near, far = open_interface(values.pop("near")), open_interface(values.pop("far"))
    print("ready", flush=True)
    Relay(near, far, Impairment(**values)).run()


if __name__ == "__main__":
    main()
