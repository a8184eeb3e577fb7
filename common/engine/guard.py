"""What a program stands on: what is wanted, what is seen, and so what has to be put right.

Pure: common/engine/guarding.py looks and acts.
"""

from collections.abc import Iterator
from typing import NamedTuple

ADDRESS, INTERFACE, PROGRAM, RULES, SYSCTL = KINDS = (
    "address", "interface", "program", "rules", "sysctl")
QUIET_S = 60.0
_LONGEST_S = 60.0
_AT_ONCE = 3  # repairs of a kind


class Link(NamedTuple):
    """An interface. is_up: it has a carrier, too."""

    ifindex: int
    name: str
    is_up: bool


class Ground(NamedTuple):
    """What the program stands on. As wanted or as seen.

    interface: its name. link: None while there is none.
    rules:     as the firewall words them; None: not looked at.
    addresses: interface and address. foreign: the same, of what others had put there before us.
    own:       whether the interface has an address besides these.
    sysctls:   paths under /proc/sys with values; seen: of those that there are.
    programs:  whether all are at their hooks.
    """

    interface: str
    link: Link | None
    rules: str | None = None
    addresses: frozenset[tuple[str, str]] = frozenset()
    foreign: frozenset[tuple[str, str]] = frozenset()
    own: bool = False
    sysctls: frozenset[tuple[str, str]] = frozenset()
    programs: bool = True


class Finding(NamedTuple):
    """Something that is not as it should be.

    what:  of KINDS, if it is a repair. things: addresses or sysctls, as in Ground.
    found, done: for the log. is_repair: else there is nothing that we could do, but to say so.
    """

    what: str
    found: str
    done: str
    things: tuple[tuple[str, str], ...] = ()
    is_repair: bool = True


def findings(wanted: Ground, seen: Ground) -> Iterator[Finding]:
    """What is to be put right, in this order. wanted.link: as it was when last looked at."""
    if seen.rules is not None and seen.rules != wanted.rules:
        how = "were changed" if seen.rules else "were gone"
        yield Finding(RULES, f"the firewall rules {how}", "installed again")
    change = _change(wanted.link, seen.link)
    if change:
        yield change
        if seen.link and seen.link.name != wanted.interface:
            return  # all else goes by its name, which is to be followed first
    yield from _sysctls(wanted, seen)
    yield from _addresses(wanted, seen)
    if seen.link and not seen.programs:
        yield Finding(PROGRAM, f"the program at {seen.link.name} was detached", "attached again")


def _change(was: Link | None, now: Link | None) -> Finding | None:
    if was and not now:
        return Finding(INTERFACE, f"{was.name} is gone", "waiting until there is one of that name",
                       is_repair=False)
    if not now:
        return None
    if not was or was.ifindex != now.ifindex:
        return Finding(INTERFACE, f"{now.name} was deleted and made anew",
                       "what it had of ours is put there again")
    if was.name != now.name:
        return Finding(INTERFACE, f"{was.name} is called {now.name} now",
                       f"followed; the next start needs interface = \"{now.name}\"")
    if was.is_up and not now.is_up:
        return Finding(INTERFACE, f"{now.name} is down, or has no carrier",
                       "no packets until that ends", is_repair=False)
    if now.is_up and not was.is_up:
        return Finding(INTERFACE, f"{now.name} was down", "it is up again")
    return None


def _sysctls(wanted: Ground, seen: Ground) -> Iterator[Finding]:
    values = dict(seen.sysctls)
    wrong = sorted((name, value) for name, value in wanted.sysctls
                   if values.get(name, value) != value)
    if wrong:
        words = ", ".join(f"{name.replace('/', '.')} = {values[name]}" for name, _ in wrong)
        yield Finding(SYSCTL, f"another has set {words}",
                      f"{', '.join(value for _, value in wrong)} again", tuple(wrong))


def _addresses(wanted: Ground, seen: Ground) -> Iterator[Finding]:
    link = seen.link
    has_lost_own = bool(link and wanted.own and not seen.own)
    if link and has_lost_own:
        yield Finding("own address", f"{link.name} has no address of its own any more",
                      "VIPs are added after it has one, or they would be the host's first",
                      is_repair=False)

    def can_have(interface: str) -> bool:
        if interface != wanted.interface:
            return True
        return link is not None and link.is_up and not has_lost_own

    gone = tuple(sorted((interface, address) for interface, address
                        in wanted.addresses - seen.addresses if can_have(interface)))
    if gone:
        yield Finding(ADDRESS, f"{_worded(gone)} had been removed", "added again", gone)
    left = tuple(sorted((interface, address) for interface, address
                        in wanted.foreign - seen.foreign if can_have(interface)))
    if left:
        yield Finding("foreign address", f"{_worded(left)} has been removed",
                      "left to whoever manages it, since it was there before the start",
                      is_repair=False)


def _worded(addresses: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{address} on {interface}" for interface, address in addresses)


class Pace:
    """When a kind of repair may be made: at once, but ever more seldom where it does not last.

    After QUIET_S without one it is forgotten. What can only be said is said once in QUIET_S.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, bool], int] = {}
        self._last_s: dict[tuple[str, bool], float] = {}
        self._pauses_s: dict[tuple[str, bool], float] = {}

    def may(self, finding: Finding, now_s: float) -> bool:
        """Whether it is time for it."""
        key = finding.what, finding.is_repair
        return now_s >= self._last_s.get(key, float("-inf")) + self._pauses_s.get(key, 0)

    def note(self, finding: Finding, now_s: float) -> float:
        """It is made, or said. Returns: the seconds until that may be done again."""
        key = finding.what, finding.is_repair
        pause_s = self._pauses_s.get(key, 0)
        if now_s - self._last_s.get(key, float("-inf")) > pause_s + QUIET_S:
            self._counts[key] = 0
        count = self._counts[key] = self._counts.get(key, 0) + 1
        self._last_s[key] = now_s
        if not finding.is_repair:
            pause_s = QUIET_S
        else:
            pause_s = 0 if count <= _AT_ONCE else min(2.0 ** (count - _AT_ONCE - 1), _LONGEST_S)
        self._pauses_s[key] = pause_s
        return pause_s
