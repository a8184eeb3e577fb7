"""Probes octet for octet, and whatever octets come."""

import dataclasses
from hashlib import blake2s

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cluster import probe
from common.cluster.cookie import Secrets
from common.cluster.probe import (
    QUESTION_LEN,
    Answer,
    Listener,
    OtherSecret,
    OtherTime,
    Question,
    Served,
    Sighting,
    Socket,
    Watch,
)
from packetbridge.probes.answers import SIGNED_RATE, UNSIGNED_RATE, Answers

KEY, OTHER = bytes(range(16)), bytes(range(16, 32))
NONCE = bytes(range(100, 116))
NOW_MS = 1_700_000_000_000
SERVED = Served(3, 7, bytes((192, 0, 2, 10)), 80, bytes((192, 0, 2, 20)), 8080, True, True,
                Listener.TCP, bytes(4), 2, 511, "why")


def question(**changes: object) -> Question:
    return Question(probe.key_id(KEY), NONCE, NOW_MS)._replace(**changes)  # type: ignore[arg-type]


def mac(octets: bytes, key: bytes = KEY) -> bytes:
    return blake2s(octets, key=key, person=b"l3dsrprb", digest_size=16).digest()


# --- octets ---


def test_a_questions_octets() -> None:
    octets = probe.emit_question(
        question(first=5, watch=Watch(3, bytes((192, 0, 2, 11)), 4660)), KEY)

    head = (b"L3D?\x01\x01\0\0" + blake2s(key=KEY, person=b"l3dsr-id", digest_size=4).digest()
            + NONCE + NOW_MS.to_bytes(8) + b"\0\5\3" + bytes((192, 0, 2, 11)) + b"\x12\x34")
    body = head + bytes(QUESTION_LEN - 16 - len(head))
    assert octets == body + mac(body)


def test_an_answers_octets() -> None:
    answer = Answer(NONCE, NOW_MS, 0x0C, 63, (probe.key_id(KEY),), "0.1", "6.18", 1, (SERVED,),
                    Sighting(2, 0x0C, 62, Socket.OPEN))

    octets = probe.emit_answer(answer, KEY)

    body = (b"L3D?\x01\x02\0\0" + probe.key_id(KEY) + NONCE + NOW_MS.to_bytes(8)
            + b"\x0c\x3f\x01\0\x01" + b"\x02\x0c\x3e\x02" + probe.key_id(KEY) + b"\x030.1\x046.18"
            + b"\x03\x07" + bytes((192, 0, 2, 10)) + b"\0\x50" + bytes((192, 0, 2, 20))
            + b"\x1f\x90\x01\x01\x01" + bytes(4) + b"\0\x02\x01\xff" + b"\x03why")
    assert octets == body + mac(body)
    assert probe.parse_answer(octets, question(), KEY) == answer


def test_what_is_said_of_another_secret_is_not_signed_and_another_time_is() -> None:
    keys = probe.key_ids(Secrets(OTHER, KEY))

    other_secret = probe.emit_other_secret(NONCE, keys)
    other_time = probe.emit_other_time(NONCE, NOW_MS + 5, KEY)

    assert other_secret == b"L3D?\x01\x03\0\0" + bytes(4) + NONCE + bytes(8) + b"".join(keys)
    body = b"L3D?\x01\x04\0\0" + probe.key_id(KEY) + NONCE + (NOW_MS + 5).to_bytes(8)
    assert other_time == body + mac(body)
    assert probe.parse_answer(other_secret, question(), KEY) == OtherSecret(NONCE, keys)
    assert probe.parse_answer(other_time, question(), KEY) == OtherTime(NONCE, NOW_MS + 5)


def test_a_macs_domain_is_its_own() -> None:
    octets = probe.emit_question(question(), KEY)

    assert octets[-16:] != blake2s(octets[:-16], key=KEY, digest_size=16).digest()
    assert not probe.is_signed(octets, OTHER)
    assert probe.is_signed(octets, KEY)


@pytest.mark.parametrize("place", [0, 4, 5, 8, 20, 30, 37, 300, 511])
def test_a_changed_octet_is_noticed(place: int) -> None:
    octets = bytearray(probe.emit_question(question(), KEY))
    octets[place] ^= 1

    parsed = probe.parse_question(bytes(octets))

    assert parsed is None or not probe.is_signed(bytes(octets), KEY)


def test_an_answer_to_another_question_is_none() -> None:
    octets = probe.emit_answer(Answer(NONCE, NOW_MS, 0, 64, (), "", "", 0), KEY)

    assert probe.parse_answer(octets, question(nonce=bytes(16)), KEY) is None
    assert probe.parse_answer(octets, question(), OTHER) is None


# --- whatever octets come ---


@given(st.binary(max_size=600))
def test_whatever_octets_come_nothing_raises(octets: bytes) -> None:
    assert probe.parse_question(octets) is None or len(octets) == QUESTION_LEN
    probe.parse_answer(octets, question(), KEY)


@given(st.binary(max_size=470), st.sampled_from(list(probe.Kind)))
def test_whatever_a_signed_answer_contains_nothing_raises(rest: bytes, kind: probe.Kind) -> None:
    head = bytearray(probe.emit_other_time(NONCE, NOW_MS, KEY)[:-16])
    head[5] = kind

    parsed = probe.parse_answer(bytes(head) + rest + mac(bytes(head) + rest), question(), KEY)

    assert parsed is None or parsed.nonce == NONCE


@given(st.lists(st.builds(
    lambda number, reason: SERVED._replace(dscp=number, reason=reason),
    st.integers(1, 63), st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=100),
), max_size=63))
def test_an_answer_is_never_longer_than_its_question(services: list[Served]) -> None:
    answer = Answer(NONCE, NOW_MS, 0, 64, probe.key_ids(Secrets(KEY, OTHER)), "1", "2",
                    len(services), tuple(services))

    octets = probe.emit_answer(answer, KEY)

    assert len(octets) <= QUESTION_LEN
    parsed = probe.parse_answer(octets, question(), KEY)
    assert isinstance(parsed, Answer)
    assert parsed.services == tuple(services)[:len(parsed.services)]
    assert bool(parsed.services) == bool(services)


# --- what is answered ---


@dataclasses.dataclass
class Bridge:
    secrets: Secrets = Secrets(KEY)  # noqa: RUF009
    services: tuple[Served, ...] = (SERVED,)
    watched: list[Watch] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers = Answers(lambda: self.secrets, lambda: self.services, self.watch, "1", "2")

    def watch(self, watch: Watch) -> Sighting:
        self.watched.append(watch)
        return Sighting(1)

    def ask(self, octets: bytes, now_ms: int = 0, unix_ms: int = NOW_MS) -> bytes | None:
        return self.answers.on_datagram(octets, 0x0C, 60, now_ms, unix_ms)


def test_whoever_has_the_secret_hears_what_the_bridge_saw() -> None:
    bridge = Bridge()

    answer = bridge.ask(probe.emit_question(question(), KEY), unix_ms=NOW_MS + 2000)

    assert answer is not None
    assert probe.parse_answer(answer, question(), KEY) == Answer(
        NONCE, NOW_MS + 2000, 0x0C, 60, (probe.key_id(KEY),), "1", "2", 1, (SERVED,))
    assert bridge.watched == []


def test_the_previous_key_is_one_too() -> None:
    bridge = Bridge(Secrets(OTHER, KEY))

    answer = bridge.ask(probe.emit_question(question(), KEY))

    assert answer is not None
    assert isinstance(probe.parse_answer(answer, question(), KEY), Answer)


def test_whoever_has_another_secret_hears_of_fingerprints_alone() -> None:
    bridge = Bridge()
    asked = question(key_id=probe.key_id(OTHER), watch=Watch(3, bytes(4), 5))

    answer = bridge.ask(probe.emit_question(asked, OTHER))

    assert answer is not None
    assert probe.parse_answer(answer, asked, OTHER) == OtherSecret(NONCE, (probe.key_id(KEY),))
    assert bridge.watched == []


def test_a_forger_who_names_the_key_hears_nothing() -> None:
    assert Bridge().ask(probe.emit_question(question(), OTHER)) is None


@pytest.mark.parametrize("off_ms", [-64_001, 64_001])
def test_who_asks_at_another_time_hears_what_time_it_is_alone(off_ms: int) -> None:
    bridge = Bridge()
    asked = question(watch=Watch(3, bytes(4), 5))

    answer = bridge.ask(probe.emit_question(asked, KEY), unix_ms=NOW_MS + off_ms)

    assert answer is not None
    assert probe.parse_answer(answer, asked, KEY) == OtherTime(NONCE, NOW_MS + off_ms)
    assert bridge.watched == []


def test_services_are_asked_for_from_any_on() -> None:
    services = tuple(SERVED._replace(dscp=number) for number in range(1, 40))
    bridge, found = Bridge(services=services), list[Served]()

    while len(found) < 39:
        asked = question(first=len(found))
        answer = bridge.ask(probe.emit_question(asked, KEY))
        assert answer is not None
        parsed = probe.parse_answer(answer, asked, KEY)
        assert isinstance(parsed, Answer)
        assert parsed.total == 39
        found += parsed.services

    assert tuple(found) == services


def test_a_watch_is_passed_on() -> None:
    bridge, watch = Bridge(), Watch(3, bytes((192, 0, 2, 11)), 4660)

    answer = bridge.ask(probe.emit_question(question(watch=watch), KEY))

    assert answer is not None
    parsed = probe.parse_answer(answer, question(), KEY)
    assert isinstance(parsed, Answer)
    assert parsed.sighting == Sighting(1)
    assert bridge.watched == [watch]


@pytest.mark.parametrize("key, rate", [(KEY, SIGNED_RATE), (OTHER, UNSIGNED_RATE)])
def test_answers_have_a_rate(key: bytes, rate: int) -> None:
    bridge, octets = Bridge(), probe.emit_question(question(key_id=probe.key_id(key)), key)

    in_one = sum(bridge.ask(octets) is not None for _ in range(rate + 50))
    in_the_next = sum(bridge.ask(octets, now_ms=1000) is not None for _ in range(rate + 50))

    assert (in_one, in_the_next) == (rate, rate)
