"""Watches what a program stands on, and puts it right: a source of the loop.

The kernel says when links, addresses or nftables change; what it does not say (sysctls, programs
that were detached, rules of the older iptables) is looked at now and then. Looking and mending is
done in a thread: a firewall's command may wait for others, and packets do not wait for it.
"""

import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pyroute2.netlink.exceptions import NetlinkError

from common.engine import guard, host
from common.engine.firewall import FirewallError
from common.engine.guard import Finding, Ground, Link, Pace
from common.engine.host import Host
from common.engine.netlink import DUMP, NETLINK_NETFILTER, Netlink
from common.engine.repairs import Repairs
from common.engine.sources import Source
from common.engine.worker import Worker

EVERY_S = 0.5
RULES_EVERY_S = 5.0
_CALM_S, _RULES_CALM_S = 0.1, 0.25  # between two looks, where changes do not end
_GROUPS = 0x1 | 0x10  # linux/rtnetlink.h: RTMGRP_LINK, _IPV4_IFADDR
_NFTABLES = 1 << 6  # linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES, as a bit
_NOT_THE_QUEUE_S = 1 << 30  # whose port is the process's id: that is how its owner is known
_GETLINK, _GETADDR = 18, 22
_LINK = struct.Struct("=BBHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg
_IFLA_IFNAME, _IFA_LOCAL = 3, 2
_UP = 0x1 | 0x40  # linux/if.h: IFF_UP, IFF_RUNNING
_BLIND = Finding("look", "the host cannot be looked at", "", is_repair=False)
log = logging.getLogger(__name__)


class Hooks(Protocol):
    """Programs at an interface, as common/bpf/hooks.py."""

    def are_lost(self, index: int) -> bool: ...
    def attach(self, index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Guarded:
    """What is watched besides a host's changes.

    interface: the configured one. repairs: where they are counted.
    on_rename: called in the loop with the interface's new name.
    """

    interface: str
    repairs: Repairs = field(default_factory=Repairs)
    hooks: Sequence[Hooks] = ()
    on_rename: Callable[[str], None] = lambda name: None


class HostGuard:
    """Guards what `host` has changed, from `begin` to `end`."""

    def __init__(self, changes: Host, guarded: Guarded) -> None:
        """Raises: OSError."""
        self._host = changes
        self._guarded = guarded
        self._kernel = Netlink()
        self._events = Netlink(groups=_GROUPS)
        self._ear = _RulesEar(self._on_rules_changed)
        self._worker: Worker[str] = Worker("guarding the host", self._on_looked)
        self._pace = Pace()
        self._index = self._installed = 0
        self._wanted = Ground(guarded.interface, None)
        self._is_looking = self._is_stale = False
        self._looked_s = self._looked_at_rules_s = float("-inf")
        self._are_rules_stale = False
        self.deadline_s: float | None = None

    @property
    def sources(self) -> list[Source]:
        """What the loop has to wait for."""
        return [self, self._ear, self._worker]

    def begin(self) -> None:
        """All is as it should be: remember that, and watch from now on."""
        self._events.heard()
        self._ear.heard()
        seen = self._look(with_rules=True)
        self._index = seen.link.ifindex if seen.link else 0
        self._wanted = self._with_changes(seen)
        self._installed = self._host.installed
        self.deadline_s = time.monotonic() + EVERY_S

    def end(self) -> None:
        """Watch no more, and wait for what is being mended: all will be undone."""
        self.deadline_s = None
        self._worker.finish()

    # --- as sources.Source ---

    def fileno(self) -> int:
        """As sources.Source."""
        return self._events.fileno()

    def on_ready(self) -> None:
        """Links or addresses have changed."""
        self._events.heard()
        self._is_stale = True
        self._plan()

    def on_deadline(self) -> None:
        """Have the worker look."""
        now_s = self._looked_s = time.monotonic()
        with_rules = now_s >= self._rules_due_s()
        if with_rules:
            self._looked_at_rules_s, self._are_rules_stale = now_s, False
        self._is_looking, self._is_stale = True, False
        self._worker.start(lambda: self._watch(with_rules))
        self._plan()

    def _on_rules_changed(self) -> None:
        self._are_rules_stale = True
        self._plan()

    def _on_looked(self, name: str) -> None:
        self._is_looking = False
        self._plan()
        if name:
            self._guarded.on_rename(name)

    def _plan(self) -> None:
        """Say when to look next: never while the last look is not over."""
        if self._is_looking:
            self.deadline_s = None
            return
        due_s = self._looked_s + (_CALM_S if self._is_stale else EVERY_S)
        self.deadline_s = min(due_s, self._rules_due_s())

    def _rules_due_s(self) -> float:
        return self._looked_at_rules_s + (
            _RULES_CALM_S if self._are_rules_stale else RULES_EVERY_S)

    # --- in the thread ---

    def _watch(self, with_rules: bool) -> str:
        """Look, and mend what is wrong. Returns: the interface's new name, if it has one."""
        before = self._wanted.interface
        try:
            with self._host.turn:  # else what a reload changes meanwhile would look like a fault
                self._learn()
                seen = self._look(with_rules)
                for finding in guard.findings(self._wanted, seen):
                    self._treat(finding, seen)
        except Exception:  # our bug, or a kernel that did not answer; the next look may be better
            if self._pace.may(_BLIND, time.monotonic()):
                self._pace.note(_BLIND, time.monotonic())
                log.exception(_BLIND.found)
        now = self._wanted.interface
        return now if now != before else ""

    def _learn(self) -> None:
        """The program may have changed the host since: for another configuration."""
        self._wanted = self._with_changes(self._wanted)
        installed = self._host.installed
        if installed != self._installed:
            self._installed = installed
            self._expect_rules()

    def _treat(self, finding: Finding, seen: Ground) -> None:
        now_s = time.monotonic()
        if not self._pace.may(finding, now_s):
            return
        pause_s = self._pace.note(finding, now_s)
        again = f"; since it does not last, not again within {pause_s:g} s" \
            if finding.is_repair and pause_s else ""
        try:
            self._mend(finding, seen)
        except (FirewallError, NetlinkError, OSError) as error:
            log.error("%s, and that cannot be put right: %s%s", finding.found, error, again)
            return
        log.warning("%s: %s%s", finding.found, finding.done, again)
        if finding.is_repair:
            self._guarded.repairs.count(finding.what)

    def _mend(self, finding: Finding, seen: Ground) -> None:
        """Raises: FirewallError, NetlinkError, OSError."""
        if finding.what == guard.RULES:
            self._host.install_again()
            self._expect_rules()
        elif finding.what == guard.INTERFACE:
            self._follow(seen.link)
        elif finding.what == guard.SYSCTL:
            for name, _ in finding.things:
                self._host.restore_sysctl(name)
        elif finding.what == guard.ADDRESS:
            for interface, address in finding.things:
                self._host.add_address(interface, address)
        elif finding.what == guard.PROGRAM and seen.link:
            for hooks in self._guarded.hooks:
                if hooks.are_lost(seen.link.ifindex):
                    hooks.attach(seen.link.ifindex)

    def _follow(self, link: Link | None) -> None:
        """The interface is this one now."""
        if link and link.name != self._wanted.interface:
            self._host.follow(self._wanted.interface, link.name)
            self._wanted = self._with_changes(self._wanted._replace(interface=link.name))
            self._expect_rules()
        elif link and link.is_up:
            for interface, address in self._host.addresses:
                if interface == link.name:
                    host.announce(interface, address)
        self._index = link.ifindex if link else 0
        self._wanted = self._wanted._replace(link=link)

    def _expect_rules(self) -> None:
        """They were installed: that is how they are to be, unless they are gone again already."""
        self._wanted = self._wanted._replace(rules=self._host.rules_seen() or self._wanted.rules)

    def _with_changes(self, ground: Ground) -> Ground:
        """With what the host has of ours."""
        return ground._replace(
            addresses=frozenset(self._host.addresses), foreign=frozenset(self._host.foreign),
            sysctls=frozenset(self._host.sysctls.items()))

    # --- what there is ---

    def _look(self, with_rules: bool) -> Ground:
        """Raises: OSError."""
        changes, name = self._host, self._wanted.interface
        link = self._link(name)
        names = {link.ifindex: link.name} if link else {}
        for interface in {where for where, _ in changes.addresses | changes.foreign} - {name}:
            try:
                names[socket.if_nametoindex(interface)] = interface
            except OSError:
                pass  # it is gone, and its addresses with it
        there = frozenset(self._addresses(names))
        of_link = {pair for pair in there if link and pair[0] == link.name}
        rules = changes.rules_seen() if with_rules else None
        programs = not link or not any(
            hooks.are_lost(link.ifindex) for hooks in self._guarded.hooks)
        return Ground(
            name, link, rules, there, there,
            bool(of_link - changes.addresses - changes.foreign),
            frozenset(changes.sysctls_seen().items()), programs)

    def _link(self, name: str) -> Link | None:
        """The interface that we know, whatever it is called now, or another one of its name."""
        index = self._index
        for _ in range(2):
            try:
                index = index or socket.if_nametoindex(name)
                answer = self._kernel.ask(_GETLINK, _LINK.pack(0, 0, 0, index, 0, 0))[0]
            except BlockingIOError:
                raise
            except OSError:
                index = 0
                continue
            flags = _LINK.unpack(answer.fixed)[4]
            now = answer.attributes[_IFLA_IFNAME].rstrip(b"\0").decode()
            return Link(index, now, flags & _UP == _UP)
        return None

    def _addresses(self, names: dict[int, str]) -> set[tuple[str, str]]:
        """Interface and address, of some interfaces. names: by index."""
        found = set()
        for answer in self._kernel.ask(_GETADDR, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0),
                                       flags=DUMP):
            name = names.get(_ADDRESS.unpack(answer.fixed)[4])
            if name and _IFA_LOCAL in answer.attributes:
                found.add((name, socket.inet_ntoa(answer.attributes[_IFA_LOCAL])))
        return found


class _RulesEar:
    """Hears of changes to nftables, which include those by iptables-nft; a source of the loop."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        try:
            self._events: Netlink | None = Netlink(
                NETLINK_NETFILTER, _NFTABLES, os.getpid() | _NOT_THE_QUEUE_S)
        except OSError:  # a kernel without; the guard looks now and then
            self._events = None

    deadline_s: float | None = None

    def fileno(self) -> int:
        """As sources.Source."""
        return self._events.fileno() if self._events else -1

    def on_ready(self) -> None:
        """As sources.Source."""
        if self.heard():
            self._on_change()

    def heard(self) -> bool:
        """Whether there was news since the last call."""
        return self._events is not None and self._events.heard()

    def on_deadline(self) -> None:
        """As sources.Source; there is none."""
