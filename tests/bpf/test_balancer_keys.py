"""Keys and schedulers of the balancer's program against their specification.

Others, and more of them: lab/run test tests/bpf/test_balancer_keys.py --seed 7 --times 100

What balancer/keys says of a first payload, the program says too: the same key, and so the same
backend, wherever the stream is cut; or that more octets are needed, and the packet goes up.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from ipaddress import IPv4Address
from random import Random

import pytest

from balancer import config
from balancer.keys.http import Missing
from balancer.keys.request import KeySpec, choose_key
from balancer.offload import program
from balancer.paths import NextHop
from balancer.pool.schedule import Scheduler, make_scheduler
from common.bpf import BpfError, build
from common.bpf.objects import XDP_PASS, XDP_TX
from common.cluster import cookie
from common.cluster.cookie import Offer, Secrets
from common.wire import tcp
from tests.bpf.hellos import Hello, hello
from tests.bpf.loaded import shared

VIP = IPv4Address("192.168.33.10")
FIRST_BACKEND = IPv4Address("192.168.33.20")
SECRETS = Secrets(bytes(range(16)))
NOW_MS = 1_700_000_010_000
ETHERNET = bytes(12) + b"\x08\x00"
MAX_LEN = 1448  # of a segment
PAYLOAD_MAX = 2048  # of the program: what lies behind is not looked at

KEYS = (
    "http.path", "http.path,depth=1", "http.path,depth=2,len=12", "http.path,len=5", "http.target",
    "http.target,depth=3", "http.target,len=40", "http.host", "http.host+path",
    "http.host+path,depth=1", "http.host+path,len=9", "http.header:X-User", "http.header:cookie",
    "http.header:a-name-that-is-longer-than-eight-octets", "http.cookie:sid",
    "http.cookie:a.session.of.some.length", "http.query:id", "http.query:parameter", "tls.sni",
    "payload:1", "payload:7", "payload:400", "source", "source+port",
)
FALLBACKS = ("source", "source+port", "payload:3", "http.host", "http.path", "http.header:Accept",
             "tls.sni", "http.query:id", "http.cookie:sid")

pytestmark = pytest.mark.root


@pytest.fixture
def random(request: pytest.FixtureRequest) -> Random:
    """What a test generates from."""
    return Random(f"{request.config.getoption('seed')} {request.function.__name__}")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """How often what the suite generates."""
    return request.config.getoption("times")


class Chooser:
    """The program with services of its own; port 1000 is the first one's."""

    def __init__(self, services: list[config.Service]) -> None:
        self.services = services
        configured = config.Config(services=tuple(services), max_flows=100_000)
        try:
            with shared():
                self.loaded = program.Program(configured, SECRETS, for_tests=True)
        except (BpfError, build.BuildError) as error:
            pytest.skip(f"no eBPF here: {str(error).splitlines()[0]}")
        self.loaded.set_test_time(NOW_MS)
        for number, service in enumerate(services):
            for backend in service.backends:
                self.loaded.set_next_hop(number, backend.id,
                                         NextHop(1, 65535, b"\2" * 6, b"\4" * 6))
        self._run = self.loaded.object.program(program.PROGRAM_NAME).test_run

    def choose(self, number: int, ends: bytes, payload: bytes) -> int | None:
        """The backend's id for a first payload; None: it goes up."""
        cookie_isn = cookie.encode(SECRETS, ends, 6, cookie.epoch_at(NOW_MS), Offer(1460, True, 7))
        packet = tcp.emit(ends, 7, cookie_isn + 1, 24, window=5, payload=payload)
        run = self._run(ETHERNET + packet)
        if run.retval == XDP_PASS:
            return None
        assert run.retval == XDP_TX
        address = int.from_bytes(run.data[len(ETHERNET) + 16:len(ETHERNET) + 20])
        return address - int(FIRST_BACKEND)


@contextmanager
def chooser(services: list[config.Service]) -> Iterator[Chooser]:
    made = Chooser(services)
    try:
        yield made
    finally:
        made.loaded.close()


def service(number: int, weights: list[int], **settings: object) -> config.Service:
    """The service of that number, with backends 1, 2 … of these weights."""
    backends = tuple(config.Backend(place, FIRST_BACKEND + place, weight)
                     for place, weight in enumerate(weights, 1))
    return config.Service(name=str(number), vip=VIP, port=1000 + number, dscp=number + 1,
                          backends=backends, **settings)  # type: ignore[arg-type]


def five_tuple(random: Random, number: int) -> bytes:
    source = IPv4Address(random.randrange(0x0B00_0000, 0x7E00_0000))
    return source.packed + VIP.packed + struct.pack(
        "!HH", random.randrange(1024, 65536), 1000 + number)


# --- what clients send ---

METHODS = (b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND",
           b"CONNECT", b"PRI", b"M-SEARCH", b"x", b"!#$%&'*+-.^_`|~09azAZ", b"VERSION-CONTROL",
           b"A" * 32, b"A" * 33, b"G@T", b"", b"XCONNECT")
HOSTS = (b"a.b", b"Shop.Example.NET", b"h:8080", b"[::1]:80", b"[::F]", b"[", b"]", b"", b":80",
         b"a b", b"\xc3\x84.example", b"x" * 130, b"Y" * 255, b"  spaced.example \t", b"@[`{Z")
VALUES = (b"v", b"", b"  a value ", b"\t", b"x" * 70, b"A=b; c", b"\xff\x00")
COOKIES = (b"sid=1", b"sid=", b"SID=no", b" sid = spaced", b"sid", b"xsid=3", b"sid=a=b",
           b"a.session.of.some.length=yes", b"a.session.of.some.lengt=no", b"=x", b"",
           b"sid=last \t", b"\tsid=4")
QUERIES = (b"id=1", b"id=", b"ID=no", b"id", b"xid=3", b"id=a=b", b"parameter=%20", b"", b"id=2?x",
           b"parametea=no", b"parameter", b"=", b"id=7#f")


def path(random: Random) -> bytes:
    octets = random.choice((b"ab/c", b"/", b"aB.-~\xc3%", b"/abcdefgh"))
    made = b"/" + bytes(random.choices(octets, k=random.choice((0, 1, 5, 12, 60, 300))))
    if random.random() < 0.6:
        made += b"?" + b"&".join(random.choices(QUERIES, k=random.randrange(5)))
    return made


def target(random: Random) -> bytes:
    form = random.random()
    if form < 0.7:
        return path(random)
    if form < 0.9:
        authority = random.choice((b"", b"", b"u@", b"u:p@v@", b"@@@@@@")) + random.choice(HOSTS)
        scheme = random.choice((b"http://", b"https://", b"HTTP://", b"hTTps://", b"http:/", b"ftp://"))
        return scheme + authority + random.choice((b"", path(random), path(random)[1:], b"#f"))
    return random.choice((b"*", b"", b"a.b:443", b"[::1]:443", b"http", b"h", b"a/b", b"?id=3",
                          b"u@Host.b:1", b"https:/", b":1"))


def header(random: Random) -> bytes:
    name = random.choice((b"Host", b"host", b"HOST", b"X-User", b"x-uSer", b"X-Use", b"X-User2",
                          b"Accept", b"A-Name-That-Is-Longer-Than-Eight-Octets",
                          b"A-Name-That-Is-Longer-Than-Eight-Octetz", b"Cookie", b"cookie", b""))
    if name.lower() == b"cookie":
        value = random.choice((b";", b"; ", b" ;\t")).join(
            random.choices(COOKIES, k=random.randrange(6)))
    elif name.lower() == b"host":
        value = random.choice(HOSTS)
    else:
        value = random.choice(VALUES)
    return name + random.choice((b": ", b":", b":\t ", b" : ", b"")) + value


def request(random: Random) -> bytes:
    """A request, mostly sound."""
    end = random.choice((b"\r\n", b"\r\n", b"\r\n", b"\n"))
    version = random.choice((b"HTTP/1.1",) * 6 + (b"HTTP/1.0", b"HTTP/1.2",
                                                         b"HTTP/1.10", b"", b"h"))
    line = random.choice(METHODS + (b"GET",) * 20) + b" " + target(random) + b" " + version
    lines = [header(random) for _ in range(random.choice((0, 1, 3, 6, 12)))]
    made = end * random.choice((0,) * 12 + (1, 2, 16, 17)) + end.join([line, *lines, b"", b"body"])
    return made


def client_hello(random: Random) -> bytes:
    """A ClientHello, mostly sound, of a size and an order of extensions as browsers have them."""
    names = (b"a.example", b"Shop.EXAMPLE.net", b"x" * 250, b"", None, None)
    return hello(Hello(
        name=random.choice(names), key_share_len=random.choice((0, 36, 1220)),
        session_len=random.choice((0, 32)), ciphers=random.choice((1, 16, 40)),
        extensions=random.randrange(14), name_place=random.randrange(16),
        record_len=random.choice((None, None, None, 100, 3)),
        tail=random.choice((b"", b"", b"\x14\x03\x03\x00\x01\x01", b"GET "))))


def spoilt(random: Random, octets: bytes) -> bytes:
    """With an octet changed, now and then, and cut where a segment may end."""
    made = bytearray(octets)
    for _ in range(random.choice((0, 0, 0, 1, 3))):
        if made:
            made[random.randrange(len(made))] = random.choice(
                (random.randrange(256), 0, 10, 13, 32, 127))
    if random.random() < 0.4:
        del made[random.randrange(len(made) + 1):]
    return bytes(made[:random.choice((MAX_LEN, MAX_LEN, 4000))])


# --- keys ---

# How many of its answers the program may leave to the portable engine: those that are none of
# anybody's, such as four at-signs in an authority, a record of three octets, sixteen blanks.
MAX_LEFT = 0.03


@pytest.mark.parametrize("made", [request, client_hello], ids=["requests", "hellos"])
def test_the_same_keys_are_found(
    made: Callable[[Random], bytes], random: Random, times: int
) -> None:
    with chooser([service(number, [1] * 7, key=KeySpec.parse(key),
                          fallback=KeySpec.parse(random.choice(FALLBACKS)))
                  for number, key in enumerate(KEYS)]) as chosen:
        differences, counts = [], Counter[str]()
        expected = [_expectation(each) for each in chosen.services]
        for _ in range(12_000 * times):
            number = random.randrange(len(KEYS))
            ends = five_tuple(random, number)
            payload = spoilt(random, made(random)) or b"\0"

            found = chosen.choose(number, ends, payload)

            wanted = expected[number](ends, payload)
            counts["known" if wanted else "up"] += 1
            if found is None:
                counts["left"] += wanted is not None
            elif found != wanted:
                each = chosen.services[number]
                differences.append((str(each.key), str(each.fallback), payload, found, wanted))

    assert not differences[:3]
    assert counts["known"] > 8000 * times
    assert counts["left"] < MAX_LEFT * counts["known"], counts


@cache
def _scheduler(name: str, backends: tuple[config.Backend, ...]) -> Scheduler:
    return make_scheduler(name, backends, random=Random(1))


def _expectation(each: config.Service) -> Callable[[bytes, bytes], int | None]:
    """What the specification says: the id, or None where more octets are needed."""
    scheduler = _scheduler(each.scheduler, each.backends)

    def expect(ends: bytes, payload: bytes) -> int | None:
        key = choose_key(each.key, each.fallback, payload[:PAYLOAD_MAX], ends[:4],
                         int.from_bytes(ends[8:10]), complete=False)
        return None if isinstance(key, Missing) else scheduler.pick(key)

    return expect


ORDINARY = (
    b"%s /a/b/c?id=7&parameter=x HTTP/1.1\r\nHost: Shop.example:80\r\nX-User: u \r\n"
    b"a-name-that-is-longer-than-eight-octets: z\r\nAccept: */*\r\n"
    b"Cookie: first=1; sid=2; a.session.of.some.length=3\r\n\r\n"
)


def test_no_key_of_an_ordinary_request_is_left_to_the_portable_engine(random: Random) -> None:
    keys = [key for key in KEYS if key != "payload:400"]
    with chooser([service(number, [1] * 7, key=KeySpec.parse(key))
                  for number, key in enumerate(keys)]) as chosen:
        for number, each in enumerate(chosen.services):
            expect = _expectation(each)
            for method in (b"GET", b"OPTIONS", b"PATCH", b"PROPFIND", b"MKCALENDAR", b"x"):
                ends = five_tuple(random, number)

                found = chosen.choose(number, ends, ORDINARY % method)

                assert found == expect(ends, ORDINARY % method), (method, each.key)


def test_a_browsers_hello_is_decided_by_its_first_segment(random: Random) -> None:
    """Post-quantum: 1.7 kB and more; where the name stands late, its packet goes up."""
    first = Hello(name=b"Shop.example.net", key_share_len=1220, session_len=32, ciphers=16,
                  extensions=15, name_place=3)
    with chooser([service(0, [1] * 7, key=KeySpec.parse("tls.sni"))]) as chosen:
        ends, octets = five_tuple(random, 0), hello(first)
        assert len(octets) > 1700

        found = chosen.choose(0, ends, octets[:MAX_LEN])
        late = chosen.choose(0, five_tuple(random, 0),
                             hello(first._replace(name_place=20, extensions=20))[:MAX_LEN])

        assert found == _expectation(chosen.services[0])(ends, octets)
        assert late is None


@pytest.mark.parametrize("payload", [
    hello(Hello(name=None, key_share_len=36, extensions=9)),
    hello(Hello(name=None, key_share_len=36, extensions=0, has_extensions=False)),
    b"GET / HTTP/1.1\r\n\r\n",
], ids=["no name", "no extensions", "no TLS"])
def test_a_hello_without_a_name_has_its_fallback(payload: bytes, random: Random) -> None:
    with chooser([service(0, [1] * 7, key=KeySpec.parse("tls.sni"),
                          fallback=KeySpec.parse("source+port"))]) as chosen:
        ends = five_tuple(random, 0)

        found = chosen.choose(0, ends, payload)

        assert found == make_scheduler(
            "maglev", chosen.services[0].backends, random=random).pick(ends[:4] + ends[8:10])


def test_an_answer_once_given_never_changes(random: Random) -> None:
    """Whatever the cut: either the packet goes up, or it goes where the whole goes."""
    octets = {"tls.sni": hello(Hello(name=b"Shop.example.net", key_share_len=36, extensions=6)),
              **{key: ORDINARY % b"REPORT" for key in KEYS if key.startswith("http.")}}
    with chooser([service(number, [1] * 7, key=KeySpec.parse(key))
                  for number, key in enumerate(octets)]) as chosen:
        for number, (key, whole) in enumerate(octets.items()):
            expect = _expectation(chosen.services[number])
            answers, expected = [], []
            for length in range(1, len(whole) + 1):
                ends = five_tuple(random, number)  # a flow that is there needs no choice
                answers.append(chosen.choose(number, ends, whole[:length]))
                expected.append(expect(ends, whole[:length]))

            assert set(answers) - {None} == {answers[-1]}, key
            assert answers == expected, key


# --- schedulers ---


def weights(random: Random) -> list[int]:
    made = random.choices((0, 1, 1, 2, 3, 5, 10), k=random.randrange(1, 12))
    return made if any(made) else [*made, 4]


def test_rendezvous_and_maglev_choose_by_their_tables(random: Random, times: int) -> None:
    services = [service(number, weights(random), scheduler=("maglev", "rendezvous")[number % 2])
                for number in range(6)]
    with chooser(services) as chosen:
        expected = [_expectation(each) for each in services]
        for _ in range(3000 * times):
            number = random.randrange(6)
            ends = five_tuple(random, number)
            payload = b"GET /%d HTTP/1.1\r\n\r\n" % random.randrange(10**9)

            assert chosen.choose(number, ends, payload) == expected[number](ends, payload)


def test_round_robin_takes_the_specifications_turns(random: Random) -> None:
    """The very sequence, round after round."""
    services = [service(number, weights(random), scheduler="round-robin") for number in range(8)]
    with chooser(services) as chosen:
        for number, each in enumerate(services):
            scheduler = make_scheduler("round-robin", each.backends, random=random)
            rounds = 3 * sum(backend.weight for backend in each.backends)
            expected = [scheduler.pick(b"") for _ in range(rounds)]

            found = [chosen.choose(number, five_tuple(random, number), b"GET / HTTP/1.1\r\n\r\n")
                     for _ in range(rounds)]

            assert found == expected


def test_random_gives_every_backend_its_share(random: Random) -> None:
    """Within six deviations, and none to a backend of weight 0."""
    each = service(0, [0, 1, 2, 5], scheduler="random")
    with chooser([each]) as chosen:
        found = Counter(chosen.choose(0, five_tuple(random, 0), b"GET / HTTP/1.1\r\n\r\n")
                        for _ in range(8000))

    assert set(found) == {2, 3, 4}
    for backend_id, share in ((2, 1 / 8), (3, 2 / 8), (4, 5 / 8)):
        deviation = (8000 * share * (1 - share)) ** 0.5
        assert abs(found[backend_id] - 8000 * share) < 6 * deviation


def _compare_by_counts(
    random: Random, services: list[config.Service], rounds: int
) -> Counter[int]:
    """Let flows come and go, and both choose by the same counts.

    Returns: how many went up, by service.
    """
    gone_up: Counter[int] = Counter()
    with chooser(services) as chosen:
        for number, each in enumerate(services):
            scheduler = make_scheduler(each.scheduler, each.backends, random=random,
                                       hash_balance_factor=each.hash_balance_factor)
            loads: Counter[int] = Counter()
            flows: list[tuple[bytes, int]] = []
            for _ in range(rounds):
                if flows and random.random() < 0.3:
                    ends, backend_id = flows.pop(random.randrange(len(flows)))
                    assert chosen.loaded.flows.delete(ends)
                    loads[backend_id] -= 1
                ends = five_tuple(random, number)
                payload = b"GET /%d HTTP/1.1\r\n\r\n" % random.randrange(5)
                key = choose_key(each.key, each.fallback, payload, ends[:4], 0, complete=False)
                assert isinstance(key, bytes)

                found = chosen.choose(number, ends, payload)

                if found is None:
                    gone_up[number] += 1
                    continue
                assert found == scheduler.pick(key, loads.__getitem__), (each, loads)
                loads[found] += 1
                flows.append((ends, found))
    return gone_up


def test_least_flows_chooses_by_the_counts_of_the_table(random: Random) -> None:
    services = [service(number, weights(random), scheduler="least-flows") for number in range(6)]
    services.append(service(6, [0, *[3] * 126], scheduler="least-flows"))

    assert not _compare_by_counts(random, services, 300)


def test_a_backend_with_its_share_is_passed_over(random: Random) -> None:
    """By Maglev's table; where rendezvous has another choice, the portable engine makes it."""
    services = [service(number, weights(random), scheduler=("maglev", "rendezvous")[number % 2],
                        key=KeySpec.parse("http.path"),
                        hash_balance_factor=random.choice((100, 110, 150, 300)))
                for number in range(8)]

    gone_up = _compare_by_counts(random, services, 300)

    assert sum(gone_up[number] for number in range(0, 8, 2)) < 0.05 * 4 * 300, gone_up
