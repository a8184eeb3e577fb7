"""What is found to be wrong with a program's ground, and how often that is mended."""

import pytest

from balancer.neighbours import NextHops
from balancer.paths import UNKNOWN, Route
from balancer.vips import DEFEND_S, Conflicts
from common.engine import guard
from common.engine.guard import Finding, Ground, Link, Pace, findings
from common.engine.repairs import Repairs
from common.wire import arp
from lab.node import REPOSITORY

ETH1 = Link(3, "eth1", True)
VIP, ON_LO, OTHERS = ("eth1", "192.0.2.10"), ("lo", "192.0.2.10"), ("eth1", "192.0.2.11")
REFLECT = ("net/ipv4/fwmark_reflect", "1")
WANTED = Ground("eth1", ETH1, "rules", frozenset({VIP, ON_LO}), frozenset({OTHERS}), True,
                frozenset({REFLECT}))
SOUND = WANTED._replace(addresses=frozenset({VIP, ON_LO, OTHERS}),
                        foreign=frozenset({VIP, ON_LO, OTHERS}))
REPAIR = Finding(guard.RULES, "", "")


def found(**seen: object) -> list[Finding]:
    return list(findings(WANTED, SOUND._replace(**seen)))  # type: ignore[arg-type]


def words(all_found: list[Finding]) -> list[tuple[str, str]]:
    return [(one.what, one.found) for one in all_found]


def without(*pairs: tuple[str, str]) -> dict[str, object]:
    left = SOUND.addresses - set(pairs)
    return {"addresses": left, "foreign": left}


def test_where_all_is_well_nothing_is_found() -> None:
    assert found() == []
    assert found(rules=None) == []  # they were not looked at


@pytest.mark.parametrize("rules, how", [("", "were gone"), ("others", "were changed")])
def test_rules(rules: str, how: str) -> None:
    assert words(found(rules=rules)) == [("rules", f"the firewall rules {how}")]


def test_what_is_missing_is_named() -> None:
    assert words(found(programs=False)) == [("program", "the program at eth1 was detached")]
    (sysctl,) = found(sysctls=frozenset({(REFLECT[0], "0")}))
    assert (sysctl.found, sysctl.done, sysctl.things) == (
        "another has set net.ipv4.fwmark_reflect = 0", "1 again", (REFLECT,))
    assert found(sysctls=frozenset()) == []  # it went with its interface
    (address,) = found(**without(VIP, ON_LO))
    assert (address.found, address.things) == (
        "192.0.2.10 on eth1, 192.0.2.10 on lo had been removed", (VIP, ON_LO))


def test_an_address_that_others_had_put_there_is_left_to_them() -> None:
    (left,) = found(**without(OTHERS))

    assert (left.is_repair, left.things) == (False, ())
    assert left.found == "192.0.2.11 on eth1 has been removed"


def test_a_vip_never_becomes_the_first_address_of_an_interface() -> None:
    both = found(**without(VIP, ON_LO), own=False)

    assert words(both) == [
        ("own address", "eth1 has no address of its own any more"),
        ("address", "192.0.2.10 on lo had been removed"),
    ]


@pytest.mark.parametrize("was, now, what", [
    (ETH1, None, "eth1 is gone"),
    (None, ETH1, "eth1 was deleted and made anew"),
    (ETH1, ETH1._replace(ifindex=9), "eth1 was deleted and made anew"),
    (ETH1, ETH1._replace(name="wan0"), "eth1 is called wan0 now"),
    (ETH1, ETH1._replace(is_up=False), "eth1 is down, or has no carrier"),
    (ETH1._replace(is_up=False), ETH1, "eth1 was down"),
])
def test_what_becomes_of_the_interface(was: Link | None, now: Link | None, what: str) -> None:
    (change,) = findings(WANTED._replace(link=was), SOUND._replace(link=now))

    assert (change.what, change.found) == ("interface", what)
    assert change.is_repair == (what not in ("eth1 is gone", "eth1 is down, or has no carrier"))


@pytest.mark.parametrize("was, now", [(None, None), (ETH1._replace(is_up=False),) * 2])
def test_nothing_is_put_on_an_interface_that_is_not_there(was: Link, now: Link) -> None:
    seen = SOUND._replace(link=now, programs=now is not None, **without(VIP))

    assert list(findings(WANTED._replace(link=was), seen)) == []


def test_an_interface_is_followed_before_anything_that_goes_by_its_name() -> None:
    renamed = found(link=ETH1._replace(name="wan0"), programs=False, addresses=frozenset())

    assert [one.what for one in renamed] == ["interface"]


# --- how often ---


def test_what_does_not_last_is_mended_ever_more_seldom_and_forgotten_when_it_does() -> None:
    pace, now_s, pauses = Pace(), 1000.0, []
    for _ in range(12):
        assert pace.may(REPAIR, now_s)
        pauses.append(pace.note(REPAIR, now_s))
        assert not pauses[-1] or not pace.may(REPAIR, now_s + pauses[-1] - 0.001)
        now_s += pauses[-1]
    later = pace.note(REPAIR, now_s + 60 + guard.QUIET_S + 0.1)

    assert pauses == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert later == 0
    assert pace.may(Finding(guard.ADDRESS, "", ""), now_s)  # of its own pace


def test_what_can_only_be_said_is_said_once_a_minute_and_delays_no_repair() -> None:
    pace, said = Pace(), Finding(guard.INTERFACE, "", "", is_repair=False)

    pace.note(said, 1000.0)

    assert not pace.may(said, 1059.9)
    assert pace.may(said, 1060.0)
    assert pace.may(Finding(guard.INTERFACE, "", ""), 1000.0)


def test_every_kind_of_repair_is_there_from_the_start() -> None:
    repairs = Repairs(["vip_conflict"])

    repairs.count("rules")

    assert {sample.labels["what"]: sample.value for sample in repairs.samples()} == {
        "address": 0, "interface": 0, "program": 0, "rules": 1, "sysctl": 0, "vip_conflict": 0}


# --- VIPs and neighbours ---


def test_a_conflict_is_answered_once_in_ten_seconds_for_each_vip() -> None:
    conflicts = Conflicts([b"\xc0\0\2\x0a", b"\xc0\0\2\x0b"])

    assert conflicts.are_due(b"\xc0\0\2\x0a", 5.0)
    assert not conflicts.are_due(b"\xc0\0\2\x0a", 5.0 + DEFEND_S - 0.1)
    assert conflicts.are_due(b"\xc0\0\2\x0b", 5.1)
    assert conflicts.are_due(b"\xc0\0\2\x0a", 5.0 + DEFEND_S)
    assert not conflicts.are_due(b"\xc0\0\2\x0c", 5.0)  # none of ours


def test_what_is_no_arp_for_ipv4_is_none() -> None:
    frame = arp.announcement(b"\2\0\0\0\0\1", b"\xc0\0\2\x0a")

    assert arp.parse(frame) == arp.Arp(arp.REQUEST, b"\2\0\0\0\0\1", b"\xc0\0\2\x0a",
                                       b"\xc0\0\2\x0a")
    assert arp.parse(frame + bytes(18)) == arp.parse(frame)  # padded on the wire
    for length in range(len(frame)):
        assert arp.parse(frame[:length]) is None
    assert arp.parse(frame[:12] + b"\x86\xdd" + frame[14:]) is None
    assert arp.parse(frame[:18] + b"\x08" + frame[19:]) is None


def test_a_silent_next_hop_is_said_once_with_all_that_is_behind_it(
    caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "balancer")
    hops, gateway = NextHops(), b"\xc0\0\2\1"
    sound = Route(b"\xc0\0\2\x0b", 1500, UNKNOWN, "eth1", next_hop=gateway)
    silent = sound._replace(is_silent=True)
    first, second = b"\x0a\0\0\1", b"\x0a\0\0\2"

    for route in (sound, silent, silent, sound):
        hops.update({first: route, second: route, b"\x0a\0\0\3": Route(b"", 0, UNKNOWN)})

    assert caplog.messages == [
        "the next hop 192.0.2.1 on eth1 does not answer ARP, so packets to 10.0.0.1, 10.0.0.2 are "
        "lost: is it down, or elsewhere?",
        "the next hop 192.0.2.1 answers again",
    ]
    (sample,) = hops.samples()
    assert f"| `{sample.name}` |" in (REPOSITORY / "docs/operations.md").read_text()
    assert (sample.name, sample.labels, sample.value) == (
        "next_hop_up", {"address": "192.0.2.1"}, 1)
