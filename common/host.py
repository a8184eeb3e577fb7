"""What the programs change on the host, and how it is put back.

Each change is written to a journal before it is made, so that whatever ends the
program, the change can be undone: by itself on SIGTERM and SIGINT, by its next
start after SIGKILL. A journal whose owner still runs is left alone; that is
known by its lock, an abstract socket, which dies with the process and, like the
changes, belongs to one network namespace.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pyroute2 import IPRoute

from common import firewall, queue

RUN = Path("/run/l3dsr")
_SYSCTLS = Path("/proc/sys")
log = logging.getLogger(__name__)


class Busy(Exception):
    """Another instance has what we need."""


class Locks:
    """Names that only one process of a network namespace has at a time."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def take(self, name: str, refusal: str) -> None:
        """Raises: Busy with `refusal` where another process has the name."""
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(_lock_name(name))
        except OSError:
            lock.close()
            raise Busy(refusal) from None
        self._sockets.append(lock)

    def release(self) -> None:
        """Let all names go."""
        for lock in self._sockets:
            lock.close()
        self._sockets.clear()


def is_free(name: str) -> bool:
    """Whether nobody has the lock `name`."""
    locks = Locks()
    try:
        locks.take(name, "")
    except Busy:
        return False
    locks.release()
    return True


def _lock_name(name: str) -> str:
    return f"\0l3dsr/{name}"


class Host:
    """The changes of one program, `program`, whose lock is `queue/NUMBER`."""

    def __init__(self, program: str, queue_number: int) -> None:
        self._owner = f"{program}-{queue_number}"
        self._path = _journal(self._owner)
        self._changes: list[dict[str, str]] = []

    def recover(self) -> None:
        """Undo what instances that were killed left behind in this network namespace."""
        program = self._owner.rpartition("-")[0]
        for path in RUN.glob(f"{program}-*.{_namespace()}.json"):
            number = path.name.partition(".")[0].rpartition("-")[2]
            if path != self._path and not is_free(f"queue/{number}"):
                continue
            log.warning("undoing what a killed %s left on this host", program)
            for change in reversed(json.loads(path.read_text())):
                if path == self._path and change["kind"] == "firewall":
                    # Replaced at once later: a gap would let packets of old flows escape.
                    self._changes.append(change)
                else:
                    _undo(change)
            path.unlink()

    def add_address(self, interface: str, address: str) -> None:
        """Give `address` (/32) to `interface` unless it is there, and tell the neighbours."""
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname=interface)[0]
            if address in _addresses(netlink, index):
                log.info("%s is on %s already and will stay", address, interface)
                return
            self._note({"kind": "address", "interface": interface, "address": address})
            netlink.addr("add", index=index, address=address, prefixlen=32)
        queue.announce(interface, socket.inet_aton(address))

    def set_sysctl(self, name: str, value: str) -> None:
        """Set the sysctl `name`, given as a path under /proc/sys."""
        path = _SYSCTLS / name
        old = path.read_text().strip()
        if old != value:
            self._note({"kind": "sysctl", "name": name, "value": old})
            path.write_text(value)

    def install_rules(self, rules: list[firewall.Rule]) -> str:
        """Install firewall rules and return by what means. Raises: firewall.FirewallError."""
        self._note({"kind": "firewall", "owner": self._owner})
        return firewall.install(self._owner, rules).name

    def undo(self) -> None:
        """Put everything back, the last change first."""
        for change in reversed(self._changes):
            _undo(change)
        self._changes.clear()
        self._path.unlink(missing_ok=True)

    def _note(self, change: dict[str, str]) -> None:
        self._changes.append(change)
        RUN.mkdir(mode=0o755, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(self._changes))
        draft.replace(self._path)


def addresses_of(interface: str) -> list[str]:
    """The IPv4 addresses of an interface, the first one first."""
    with IPRoute() as netlink:
        return list(_addresses(netlink, netlink.link_lookup(ifname=interface)[0]))


def is_local(address: str) -> bool:
    """Whether any interface of this host has the address."""
    with IPRoute() as netlink:
        return address in {
            entry.get_attr("IFA_LOCAL") for entry in netlink.get_addr(family=socket.AF_INET)
        }


def _addresses(netlink: IPRoute, index: int) -> Iterator[str]:
    for entry in netlink.get_addr(family=socket.AF_INET, index=index):
        yield entry.get_attr("IFA_LOCAL")


def _journal(owner: str) -> Path:
    return RUN / f"{owner}.{_namespace()}.json"


def _namespace() -> int:
    return os.stat("/proc/self/ns/net").st_ino


def _undo(change: dict[str, str]) -> None:
    try:
        if change["kind"] == "address":
            with IPRoute() as netlink:
                for index in netlink.link_lookup(ifname=change["interface"]):
                    if change["address"] in _addresses(netlink, index):
                        netlink.addr(
                            "delete", index=index, address=change["address"], prefixlen=32
                        )
        elif change["kind"] == "sysctl":
            (_SYSCTLS / change["name"]).write_text(change["value"])
        elif change["kind"] == "firewall":
            firewall.remove(change["owner"])
    except Exception as error:  # whatever it is, the other changes still have to be undone
        log.error("cannot undo %s: %s", change, error)
