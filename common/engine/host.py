"""What the programs change on the host, and how it is put back.

Each change is written to a journal before it is made, so that whatever ends the
program, the change can be undone: by itself on SIGTERM and SIGINT, by its next
start after SIGKILL. A journal whose owner still runs is left alone; that is
known by its lock (common/engine/lock.py), which dies with the process.

A journal speaks of one network namespace. The namespace's inode is in the name
of the file and its cookie, which no later namespace has again, is in it.
"""

import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from common.engine import firewall, lock, netns
from common.engine.firewall import Rule
from common.settings import ConfigError
from common.wire import arp

RUN = Path("/run/l3dsr")
_SYSCTLS = Path("/proc/sys")
Change = dict[str, str]
log = logging.getLogger(__name__)


class Host:
    """The changes of one program that has the lock of its `owner_name`; one thread at a time.

    turn: who holds it sees no change half-way, nor one after what has been seen.
    addresses, sysctls: what it has put there; interface and address, path and value.
    foreign: addresses that were there already. installed: how often rules were.
    When all is undone, nothing is changed any more.
    """

    def __init__(self, program: str, queue_number: int) -> None:
        self.program = program
        self.owner_name = f"{program}-{queue_number}"
        self._path = RUN / f"{self.owner_name}.{netns.inode()}.json"
        self._changes: list[Change] = []
        self.addresses: set[tuple[str, str]] = set()
        self.foreign: set[tuple[str, str]] = set()
        self.sysctls: dict[str, str] = {}
        self.installed = 0
        self._rules: Sequence[Rule] = ()
        self._way: firewall.Way | None = None
        self._names: dict[str, str] = {}  # what the interface was called: what it is now
        self.turn = threading.RLock()
        self._is_over = False

    def recover(self, keep: Callable[[Change], bool] = lambda change: False) -> None:
        """Undo what instances that were killed left behind in this network namespace.

        keep: which changes are to be made again, and so stay as they are. Rules under our own
              name stay in any case until `install_rules` replaces them: without them, the host's
              stack would answer the packets of flows that go on.
        """
        dead = [path for path in RUN.glob(f"{self.program}-*.{netns.inode()}.json")
                if path == self._path or not lock.is_taken(_owner(path))]
        self._changes = [change for path in dead for change in _read(path)]
        if self._changes:
            log.warning("undoing the changes that a killed %s left on this host", self.program)
            self._write()  # from now on they are ours, whatever happens
        for path in set(dead) - {self._path}:
            path.unlink()
        self._undo_all(
            lambda change: not keep(change)
            and (change["kind"], change.get("owner")) != ("firewall", self.owner_name)
        )

    def add_address(self, interface: str, address: str) -> None:
        """Give `address` (/32) to `interface` unless it is there, and tell the neighbours."""
        with self.turn, IPRoute() as netlink:
            if self._is_over:
                return
            interface = self._names.get(interface, interface)
            index = _index(netlink, interface)
            change = {"kind": "address", "interface": interface, "address": address}
            is_there = address in _addresses(netlink, index)
            if is_there and change not in self._changes:
                log.info("%s is already on %s, and will stay there", address, interface)
                self.foreign.add((interface, address))
                return
            self.addresses.add((interface, address))
            if is_there:
                return
            if change not in self._changes:
                self._note(change)
            netlink.addr("add", index=index, address=address, prefixlen=32)
        announce(interface, address)

    def remove_address(self, interface: str, address: str) -> None:
        """Take back an address that was given; one that was there before stays."""
        with self.turn:
            if self._is_over:
                return
            interface = self._names.get(interface, interface)
            change = {"kind": "address", "interface": interface, "address": address}
            self.addresses.discard((interface, address))
            self.foreign.discard((interface, address))
            self._undo_all(lambda made: made == change)

    def set_sysctl(self, name: str, value: str) -> None:
        """Set the sysctl `name`, given as a path under /proc/sys. Raises: OSError."""
        path = _SYSCTLS / name
        old = path.read_text().strip()
        self.sysctls[name] = value
        for change in self._changes_of_others():
            if change["kind"] == "sysctl" and change["name"] == name:
                old = change["value"]  # whoever of us ends last puts it back
        if old != value:
            self._note({"kind": "sysctl", "name": name, "value": old})
            path.write_text(value)

    def sysctls_seen(self) -> dict[str, str]:
        """The values that these sysctls have now; those of an interface may be gone with it."""
        paths = {name: _SYSCTLS / name for name in self.sysctls}
        return {name: path.read_text().strip() for name, path in paths.items() if path.exists()}

    def install_rules(self, rules: Sequence[Rule]) -> str:
        """Install firewall rules in place of those that we have. Raises: FirewallError.

        Returns: the name of the first way that works.
        """
        with self.turn:
            return self._install_rules(rules) if not self._is_over else ""

    def _install_rules(self, rules: Sequence[Rule]) -> str:
        refusals = {}
        for old, new in self._names.items():
            rules = _following(rules, old, new)
        self.installed += 1
        for name, way in firewall.WAYS.items():
            change = {"kind": "firewall", "owner": self.owner_name, "way": name}
            if change not in self._changes:
                self._note(change)
            try:
                way.install(self.owner_name, rules)
            except firewall.FirewallError as refusal:
                refusals[name] = str(refusal)
                continue
            self._way, self._rules = way, rules
            break
        else:
            raise firewall.none_works(refusals)
        self._undo_all(  # what refused, and a killed predecessor's other way
            lambda old: old["kind"] == "firewall" and old["way"] != name
        )
        return name

    def rules_seen(self) -> str:
        """The installed rules as they are now; empty if there are none."""
        with self.turn:
            return self._way.seen(self.owner_name) if self._way else ""

    def install_again(self) -> None:
        """Install the same rules in the same way. Raises: FirewallError."""
        with self.turn:
            if self._way and not self._is_over:
                self._way.install(self.owner_name, self._rules)

    def restore_sysctl(self, name: str) -> None:
        """Give a sysctl of ours its value again. Raises: OSError."""
        with self.turn:
            if not self._is_over:
                (_SYSCTLS / name).write_text(self.sysctls[name])

    def follow(self, old: str, new: str) -> None:
        """An interface has got a new name: what was changed there is known by that now.

        Raises: FirewallError.
        """
        with self.turn:
            self._changes = [_renamed(change, old, new) for change in self._changes]
            self._write()
            for pairs in (self.addresses, self.foreign):
                of_old = {pair for pair in pairs if pair[0] == old}
                pairs -= of_old
                pairs |= {(new, address) for _, address in of_old}
            self.sysctls = {
                _sysctl_of(name, old, new): value for name, value in self.sysctls.items()}
            self._names = dict.fromkeys((*self._names, old), new)
            self._rules = _following(self._rules, old, new)
            self.install_again()

    def leave(self) -> None:
        """Leave everything as it is, to whoever takes it over."""
        with self.turn:
            self._is_over = True

    def undo(self) -> None:
        """Put everything back, the last change first."""
        with self.turn:
            self._is_over = True
            self._undo_all(lambda change: True)

    def _undo_all(self, is_meant: Callable[[Change], bool]) -> None:
        """Undo changes. Those that cannot be are kept in the journal, for the next try."""
        self._changes = [
            change for change in reversed(self._changes)
            if not is_meant(change) or not self._undo(change)
        ][::-1]
        if self._changes:
            self._write()
        else:
            self._path.unlink(missing_ok=True)

    def _note(self, change: Change) -> None:
        self._changes.append(change)
        self._write()

    def _write(self) -> None:
        RUN.mkdir(mode=0o755, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps({"namespace": netns.cookie(), "changes": self._changes}))
        draft.replace(self._path)

    def _changes_of_others(self) -> list[Change]:
        """What other instances have changed, which all run: `recover` has seen to the rest."""
        paths = set(RUN.glob(f"*.{netns.inode()}.json")) - {self._path}
        return [change for path in paths for change in _read(path)]

    def _undo(self, change: Change) -> bool:
        """Returns: whether it is undone."""
        try:
            if change["kind"] == "address":
                _remove_address(change["interface"], change["address"])
            elif change["kind"] == "firewall":
                firewall.WAYS[change["way"]].remove(change["owner"])
            elif change not in self._changes_of_others():
                path = _SYSCTLS / change["name"]
                if path.parent.exists():  # those of an interface go with it
                    path.write_text(change["value"])
        except Exception as error:  # whatever it is, the other changes still have to be undone
            log.error("cannot undo %s: %s", change, error)
            return False
        return True


# --- what can be seen of the host ---


def addresses_of(interface: str) -> list[str]:
    """The IPv4 addresses of an interface, the first one first."""
    with IPRoute() as netlink:
        return _addresses(netlink, _index(netlink, interface))


def all_addresses() -> set[str]:
    """The IPv4 addresses of all interfaces."""
    with IPRoute() as netlink:
        return set(_addresses(netlink))


def is_local(address: str) -> bool:
    """Whether any interface of this host has the address."""
    return address in all_addresses()


def check_sysctls(file: str, wanted: dict[str, str]) -> None:
    """Raises: ConfigError unless these sysctls have, or can be given, their values."""
    for name, value in wanted.items():
        path = _SYSCTLS / name
        key = name.replace("/", ".")
        try:
            current = path.read_text().strip()
        except OSError:
            raise ConfigError(file, key, None, "a sysctl of this kernel, which has none") from None
        if current != value and not os.access(path, os.W_OK):
            remedy = f"{value}, or the right to set it: sysctl -w {key}={value}"
            raise ConfigError(file, key, current, remedy)


def _index(netlink: IPRoute, interface: str) -> int:
    indices = netlink.link_lookup(ifname=interface)
    if not indices:
        raise OSError(errno.ENODEV, f"there is no interface {interface} any more")
    return indices[0]


def _addresses(netlink: IPRoute, index: int | None = None) -> list[str]:
    return [
        entry.get_attr("IFA_LOCAL") for entry in netlink.get_addr(family=socket.AF_INET)
        if index in (None, entry["index"])
    ]


def _remove_address(interface: str, address: str) -> None:
    with IPRoute() as netlink:
        for index in netlink.link_lookup(ifname=interface):
            try:
                netlink.addr("delete", index=index, address=address, prefixlen=32)
            except NetlinkError as error:
                if error.code != errno.EADDRNOTAVAIL:
                    raise


def announce(interface: str, address: str) -> None:
    """Tell the neighbours that `address` lives here now (gratuitous ARP, RFC 5227 §3)."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind((interface, 0))
            mac = link.getsockname()[4]
            if len(mac) == 6:  # Ethernet
                link.send(arp.announcement(mac, socket.inet_aton(address)))
    except OSError as error:
        log.warning("cannot announce %s on %s: %s", address, interface, error)


def _renamed(change: Change, old: str, new: str) -> Change:
    """A change, when an interface has got a new name."""
    if change.get("interface") == old:
        return {**change, "interface": new}
    if change["kind"] == "sysctl":
        return {**change, "name": _sysctl_of(change["name"], old, new)}
    return change


def _following(rules: Sequence[Rule], old: str, new: str) -> list[Rule]:
    """Rules, when an interface has got a new name."""
    return [replace(rule, interface=new if rule.interface == old else rule.interface,
                    other_than=new if rule.other_than == old else rule.other_than)
            for rule in rules]


def _sysctl_of(name: str, old: str, new: str) -> str:
    return name.replace(f"/conf/{old}/", f"/conf/{new}/")


def _read(path: Path) -> list[Change]:
    """The changes in a journal; none if it is of another namespace, or gone."""
    try:
        journal: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return []
    return journal["changes"] if journal["namespace"] == netns.cookie() else []


def _owner(path: Path) -> str:
    return path.name.partition(".")[0]
