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
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from common.engine import firewall, lock, netns
from common.engine.firewall import Rule
from common.settings import ConfigError

RUN = Path("/run/l3dsr")
_SYSCTLS = Path("/proc/sys")
Change = dict[str, str]
log = logging.getLogger(__name__)


class Host:
    """The changes of one program that has the lock of its `owner_name`; one thread at a time.

    When all is undone, nothing is changed any more.
    """

    def __init__(self, program: str, queue_number: int) -> None:
        self.program = program
        self.owner_name = f"{program}-{queue_number}"
        self._path = RUN / f"{self.owner_name}.{netns.inode()}.json"
        self._changes: list[Change] = []
        self._turn = threading.RLock()
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
        with self._turn, IPRoute() as netlink:
            if self._is_over:
                return
            index = _index(netlink, interface)
            change = {"kind": "address", "interface": interface, "address": address}
            if address in _addresses(netlink, index):
                if change not in self._changes:
                    log.info("%s is already on %s, and will stay there", address, interface)
                return
            self._note(change)
            netlink.addr("add", index=index, address=address, prefixlen=32)
        _announce(interface, socket.inet_aton(address))

    def remove_address(self, interface: str, address: str) -> None:
        """Take back an address that was given; one that was there before stays."""
        change = {"kind": "address", "interface": interface, "address": address}
        with self._turn:
            self._undo_all(lambda made: made == change)

    def set_sysctl(self, name: str, value: str) -> None:
        """Set the sysctl `name`, given as a path under /proc/sys. Raises: OSError."""
        path = _SYSCTLS / name
        old = path.read_text().strip()
        for change in self._changes_of_others():
            if change["kind"] == "sysctl" and change["name"] == name:
                old = change["value"]  # whoever of us ends last puts it back
        if old != value:
            self._note({"kind": "sysctl", "name": name, "value": old})
            path.write_text(value)

    def install_rules(self, rules: Sequence[Rule]) -> str:
        """Install firewall rules in place of those that we have. Raises: FirewallError.

        Returns: the name of the first way that works.
        """
        with self._turn:
            return self._install_rules(rules) if not self._is_over else ""

    def _install_rules(self, rules: Sequence[Rule]) -> str:
        refusals = {}
        for name, way in firewall.WAYS.items():
            change = {"kind": "firewall", "owner": self.owner_name, "way": name}
            if change not in self._changes:
                self._note(change)
            try:
                way.install(self.owner_name, rules)
            except firewall.FirewallError as refusal:
                refusals[name] = str(refusal)
                continue
            break
        else:
            raise firewall.none_works(refusals)
        self._undo_all(  # what refused, and a killed predecessor's other way
            lambda old: old["kind"] == "firewall" and old["way"] != name
        )
        return name

    def leave(self) -> None:
        """Leave everything as it is, to whoever takes it over."""
        with self._turn:
            self._is_over = True

    def undo(self) -> None:
        """Put everything back, the last change first."""
        with self._turn:
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
                (_SYSCTLS / change["name"]).write_text(change["value"])
        except Exception as error:  # whatever it is, the other changes still have to be undone
            log.error("cannot undo %s: %s", change, error)
            return False
        return True


# --- what can be seen of the host ---


def addresses_of(interface: str) -> list[str]:
    """The IPv4 addresses of an interface, the first one first."""
    with IPRoute() as netlink:
        return _addresses(netlink, _index(netlink, interface))


def is_local(address: str) -> bool:
    """Whether any interface of this host has the address."""
    with IPRoute() as netlink:
        return address in _addresses(netlink)


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


def _announce(interface: str, address: bytes) -> None:
    """Tell the neighbours that `address` lives here now (gratuitous ARP, RFC 5227 §3)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((interface, 0))
        mac = link.getsockname()[4]
        if len(mac) != 6:
            return  # not Ethernet
        request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        frame = b"\xff" * 6 + mac + b"\x08\x06" + request
        try:
            link.send(frame + mac + address + bytes(6) + address)
        except OSError as error:
            log.warning("cannot announce the new address on %s: %s", interface, error)


def _read(path: Path) -> list[Change]:
    """The changes in a journal; none if it is of another namespace, or gone."""
    try:
        journal: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return []
    return journal["changes"] if journal["namespace"] == netns.cookie() else []


def _owner(path: Path) -> str:
    return path.name.partition(".")[0]
