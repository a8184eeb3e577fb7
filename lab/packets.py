"""Nanoseconds for a packet, path by path, and octets for a flow: the data paths alone.

No network, no queue, no socket: what Python does with a packet that has arrived, and what the eBPF
programs do (lab/programs.py). Paths are
measured alternately, round after round, and the least of the rounds is the figure, since
whatever else the machine does only adds to it.
"""

import gc
import itertools
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address
from random import Random

from balancer import config as balancer_config
from balancer.datapath import Datapath as Balancer
from balancer.flows import BackendFlow
from balancer.keys.request import KeySpec
from balancer.modes.split import takeover
from balancer.pool.schedule import moved_share
from common.bpf import BpfError, build
from common.cluster.cookie import Secrets
from common.wire import options, tcp
from common.wire.options import Options
from common.wire.tcp import ACK, PSH, SYN
from lab import hellos, payloads, programs
from lab.handshakes import Handshake
from packetbridge import config as bridge_config
from packetbridge.datapath import Datapath as Bridge
from packetbridge.flows import OPEN, BridgeFlow

NOW_MS = 1_700_000_010_000
SECRETS = Secrets(bytes(range(16)))
VIP, BRIDGE, SERVER = (IPv4Address(f"192.168.33.{host}") for host in (10, 20, 30))
CLIENT_ISN = 1000
_PACKETS = 20_000
_FLOWS = (1_000, 100_000, 1_000_000)
_SEED = 7

Work = tuple[Callable[[bytes, int], object], list[bytes]]  # what decides, and about what


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, float]:
    """All figures by name: ns for a packet, octets for a flow, shares. say: for progress."""
    random = Random(_SEED)
    figures: dict[str, float] = {}
    try:
        figures |= {f"fast {name}": value for name, value in programs.measure(rounds, say).items()}
    except (BpfError, build.BuildError) as error:
        say(f"no eBPF here: {error}")
    say("one path after the other")
    fresh = {**_opening_paths(random), **_bridge_paths(random)}
    figures |= _least_ns(fresh, rounds, say)
    say("tables of a million flows")
    hits = _least_ns(_flow_paths(random), rounds, say)
    figures |= hits
    few, many = (hits[_hit_name(count)] for count in (_FLOWS[0], _FLOWS[-1]))
    figures["ratio of a flow hit among a million flows to one among 1,000"] = many / few
    keys = _five_tuples(random, _FLOWS[-1])
    for program, filled in (("balancer", _filled_balancer), ("bridge", _filled_bridge)):
        allocated = _allocated_len(lambda filled=filled: filled(keys))
        figures[f"octets for each of a million flows of the {program}"] = allocated / len(keys)
    say("tables of Maglev")
    for count in (2, 10, 32, 127):
        moved = f"share of other keys moved as one of {count} backends leaves"
        shares = _moved_shares(count)
        figures[f"{moved}, median"] = statistics.median(shares)
        figures[f"{moved}, most"] = max(shares)
    return figures


def _least_ns(
    paths: dict[str, Callable[[], Work]], rounds: int, say: Callable[[str], None]
) -> dict[str, float]:
    """The least time for a packet of each path. Every round makes its own state, if it must."""
    found: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for name, make in paths.items():
            decide, packets = make()
            gc.collect()
            gc.disable()
            start = time.perf_counter_ns()
            for packet in packets:
                decide(packet, NOW_MS)
            found[name].append((time.perf_counter_ns() - start) / len(packets))
            gc.enable()
    return {name: min(values) for name, values in found.items()}


# --- the balancer ---


def _balancer(key: str = "http.path") -> Balancer:
    backends = tuple(
        balancer_config.Backend(number, BRIDGE + number - 1) for number in range(1, 17)
    )
    service = balancer_config.Service(
        name="bench", vip=VIP, port=80, dscp=3, key=KeySpec.parse(key), backends=backends,
    )
    config = balancer_config.Config(services=(service,), max_flows=2_000_000, takeover_rate=10**9)
    return Balancer(config, SECRETS, random=Random(_SEED))


def _five_tuples(random: Random, count: int) -> list[bytes]:
    """Distinct clients of 10.0.0.0/8, towards the VIP's port 80."""
    ends = random.sample(range(1 << 40), count)
    tail = VIP.packed
    return [
        b"\x0a" + end.to_bytes(5)[:3] + tail + end.to_bytes(5)[3:] + b"\0\x50" for end in ends
    ]


def _segment(
    five_tuple: bytes, tsecr: int, payload: bytes = b"", flags: int = ACK, ack: int = 1,
    off: int = 0,
) -> bytes:
    stamps = options.emit(Options(timestamps=(5_000_000, tsecr)))
    return tcp.emit(five_tuple, CLIENT_ISN + 1 + off, ack, flags, window=502,
                    option_octets=stamps, payload=payload)


def _after_cookie(five_tuple: bytes, payload: bytes, off: int = 0) -> bytes:
    """The segment that follows a handshake with the balancer, or `off` octets later."""
    made = Handshake(SECRETS, five_tuple, CLIENT_ISN, NOW_MS)
    flags = ACK | PSH if payload else ACK
    return _segment(five_tuple, made.t0, payload, flags, made.cookie_isn + 1, off)


def _in_two(five_tuple: bytes, payload: bytes) -> list[bytes]:
    """Both segments of a first payload that is longer than one."""
    cut = hellos.SEGMENT_LEN
    return [_after_cookie(five_tuple, payload[:cut]),
            _after_cookie(five_tuple, payload[cut:], cut)]


def _opening_paths(random: Random) -> dict[str, Callable[[], Work]]:
    """Paths that need no flow. Those that open one begin with an empty table each time."""
    clients = _five_tuples(random, _PACKETS)
    offer = options.emit(Options(1460, True, (5_000_000, 0), 7))
    syns = [tcp.emit(client, CLIENT_ISN, 0, SYN, window=64240, option_octets=offer)
            for client in clients]
    named = (3 << takeover.id_shift(7)) + 500
    late = itertools.cycle(hello for hello in hellos.mix(1000, Random(_SEED))
                           if not hello.is_named_at_once)

    def path(packets: list[bytes], key: str = "http.path") -> Callable[[], Work]:
        return lambda: (_balancer(key).on_packet, packets)

    def first(payload: bytes, key: str = "http.host+path") -> Callable[[], Work]:
        return path([_after_cookie(client, payload) for client in clients], key)

    return {
        "balancer: SYN answered": path(syns),
        "balancer: handshake's ACK": path([_after_cookie(client, b"") for client in clients]),
        "balancer: first payload, path of 40 octets": first(payloads.request(40)),
        "balancer: first payload, path of 200 octets": first(payloads.request(200)),
        "balancer: first payload, path of 800 octets": first(payloads.request(800)),
        "balancer: first payload, ClientHello": first(payloads.client_hello(), "tls.sni"),
        "balancer: ClientHello in two segments, name in the second": path(
            [segment for client in clients[:_PACKETS // 2]
             for segment in _in_two(client, next(late).octets)], "tls.sni"),
        "balancer: takeover": path([_segment(client, named) for client in clients]),
        "balancer: unknown flow": path([_segment(client, 0) for client in clients]),
    }


def _hit_name(count: int) -> str:
    return f"balancer: flow hit, {count:,} flows"


def _flow_paths(random: Random) -> dict[str, Callable[[], Work]]:
    """Packets of flows, at random, in tables of several sizes."""
    paths: dict[str, Callable[[], Work]] = {}
    for count in _FLOWS:
        keys = _five_tuples(random, count)
        datapath = _filled_balancer(keys)
        chosen = random.choices(keys, k=_PACKETS)
        paths[_hit_name(count)] = _work(datapath, [_segment(key, _echo(datapath, key), ack=77)
                                                   for key in chosen])
        if count == _FLOWS[0]:
            without = [tcp.emit(key, CLIENT_ISN, 77, ACK, window=502) for key in chosen]
            paths[f"{_hit_name(count)}, without timestamps"] = _work(datapath, without)
    return paths


def _work(datapath: Balancer, packets: list[bytes]) -> Callable[[], Work]:
    return lambda: (datapath.on_packet, packets)


def _echo(datapath: Balancer, key: bytes) -> int:
    """A TSecr that names the flow's backend."""
    flow = datapath.flows.get(key)
    assert flow is not None
    return flow.backend.ts_start + 500


def _filled_balancer(keys: Sequence[bytes]) -> Balancer:
    datapath = _balancer()
    backends = list(datapath.services.backends())
    for number, key in enumerate(keys):
        # as in life, nothing of a flow is another one's: key, numbers, time
        own_key, own_ms = bytes(bytearray(key)), NOW_MS + number % 2
        flow = BackendFlow(own_key, backends[number % len(backends)], number << 10, 0, own_ms)
        flow.ts_shift = 1 << 30 | number
        datapath.flows.insert(flow)
    return datapath


# --- the bridge ---


def _bridge() -> Bridge:
    service = bridge_config.Service(
        name="bench", dscp=3, vip=VIP, port=80, server=SERVER, server_port=80
    )
    config = bridge_config.Config(services=(service,), address=BRIDGE, max_flows=2_000_000)
    return Bridge(config, SECRETS, random=Random(_SEED))


def _open_flow(datapath: Bridge, client: bytes, port: bytes) -> BridgeFlow:
    (service,) = datapath.services.values()
    key = client + service.server + port + service.server_port
    flow = BridgeFlow(key, service, CLIENT_ISN, 2000, NOW_MS)
    flow.is_open = True
    flow.seq_delta, flow.ts_delta = 0x8000_1234, 0x1234_5678
    flow.client_next, flow.server_next = CLIENT_ISN + 1, 9000
    datapath.flows.insert(flow)
    datapath.flows.move(flow, OPEN, NOW_MS)
    return flow


def _bridge_paths(random: Random) -> dict[str, Callable[[], Work]]:
    datapath = _bridge()
    clients = [(key[:4], key[8:10]) for key in _five_tuples(random, 1000)]
    for client, port in clients:
        _open_flow(datapath, client, port)
    stamps = options.emit(Options(timestamps=(5_000_000, 6_000_000)))
    sack = options.emit_sack([(5000, 6000), (7000, 8000)])

    def from_client(option_octets: bytes) -> list[bytes]:
        return [
            tcp.emit(client + BRIDGE.packed + port + b"\0\x50", CLIENT_ISN + 1, 3000, ACK,
                     window=502, option_octets=option_octets, tos=3 << 2)
            for client, port in random.choices(clients, k=_PACKETS)
        ]

    to_client = [
        tcp.emit(SERVER.packed + client + b"\0\x50" + port, 3000, CLIENT_ISN + 1, ACK | PSH,
                 window=502, option_octets=stamps, payload=bytes(1448))
        for client, port in random.choices(clients, k=_PACKETS)
    ]
    without, with_sack = from_client(stamps), from_client(stamps + sack)
    return {
        "bridge: to the server": lambda: (datapath.on_packet, without),
        "bridge: to the server, two SACK blocks": lambda: (datapath.on_packet, with_sack),
        "bridge: to the client": lambda: (datapath.on_packet, to_client),
    }


def _filled_bridge(keys: Sequence[bytes]) -> Bridge:
    datapath = _bridge()
    for number, key in enumerate(keys):
        flow = _open_flow(datapath, key[:4], key[8:10])
        flow.client_isn, flow.cookie_isn = number << 10, 1 << 31 | number
        flow.seq_delta, flow.ts_delta = 1 << 30 | number, 1 << 29 | number
        flow.client_next, flow.server_next = number << 11, number << 12
        flow.client_acked, flow.seen_ms = number << 13, NOW_MS + number % 2
    return datapath


def _allocated_len(fill: Callable[[], object]) -> int:
    """Octets that Python has allocated for what `fill` makes."""
    gc.collect()
    tracemalloc.start()
    made = fill()
    allocated = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del made
    return allocated


def _moved_shares(count: int) -> list[float]:
    """For each of `count` backends: the share of the others' keys that move when it leaves."""
    backends = [balancer_config.Backend(number, BRIDGE) for number in range(1, count + 1)]
    return [moved_share(backends, backend.id) for backend in backends]


def table(figures: dict[str, float]) -> Iterator[str]:
    """The figures, for people, beside what some of them aim at."""
    for name, value in figures.items():
        aim = ""
        if name.startswith("share"):
            shown = f"{value:.2%}"
        elif name.startswith("ratio"):
            shown = f"{value:.2f} times"
        elif name.startswith("octets"):
            shown = f"{value:,.0f} octets"
        else:
            shown = f"{value:,.0f} ns"
            bound = programs.AIMS.get(name.removeprefix("fast "))
            if bound and name.startswith("fast "):
                aim = f"   at most {bound}: {'met' if value <= bound else 'missed'}"
        yield f"{name:<62}{shown:>14}{aim}"
