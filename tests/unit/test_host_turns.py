"""One host that a reload changes while a guard looks at it, on a kernel of this file's own."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.engine import firewall, host
from common.engine.firewall import FirewallError, Rule
from common.engine.guard import Ground
from common.engine.guarding import Guarded, HostGuard
from common.engine.host import Host

VIP, OTHER_VIP = "192.0.2.10", "192.0.2.11"
OLD = [Rule("prerouting", 33, "eth1", destination=VIP)]
NEW = [*OLD, Rule("prerouting", 33, "eth1", destination=OTHER_VIP)]


class Kernel:
    """Rules and addresses. refuses: rules."""

    name = "nftables"

    def __init__(self) -> None:
        self.rules: Sequence[Rule] = ()
        self.addresses: set[str] = set()
        self.refuses: Sequence[Rule] = ()

    def install(self, owner: str, rules: Sequence[Rule]) -> None:
        if rules == self.refuses:
            raise FirewallError("no room")
        self.rules = rules

    def remove(self, owner: str) -> None:
        self.rules = ()

    def seen(self, owner: str) -> str:
        return "\n".join(rule.nft() for rule in self.rules)

    def missing(self) -> str:
        return ""

    # --- as netlink ---

    def __enter__(self) -> "Kernel":
        return self

    def __exit__(self, *_: object) -> None: ...

    def addr(self, act: str, index: int, address: str, prefixlen: int) -> None:
        self.addresses.add(address)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(firewall, "WAYS", {made.name: made})
    for name, stand_in in {
        "RUN": tmp_path, "IPRoute": lambda: made, "_index": lambda *_: 1,
        "_addresses": lambda *_: list(made.addresses), "announce": lambda *_: None,
        "_remove_address": lambda interface, address: made.addresses.discard(address),
    }.items():
        monkeypatch.setattr(host, name, stand_in)
    return made


@pytest.fixture
def changes(kernel: Kernel) -> Host:
    made = Host("balancer", 33)
    made.install_rules(OLD)
    made.add_address("eth1", VIP)
    return made


@pytest.mark.parametrize("change", [
    lambda changes: changes.install_rules(NEW),
    lambda changes: changes.remove_address("eth1", VIP),
], ids=["rules", "address"])
def test_what_a_reload_changes_while_a_guard_looks_is_no_fault_and_stays(
    kernel: Kernel, changes: Host, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Host], Any],
) -> None:
    guarded = Guarded("lo")
    guard = HostGuard(changes, guarded)
    reload = threading.Thread(target=lambda: change(changes))

    def look(with_rules: bool) -> Ground:
        if has_begun and reload.ident is None:
            reload.start()
            reload.join(0.3)  # so long it may take, where it does not have to wait
        return Ground("lo", None, kernel.seen(""),
                      frozenset(("eth1", address) for address in kernel.addresses))

    monkeypatch.setattr(guard, "_look", look)
    has_begun = False
    guard.begin()
    has_begun = True

    guard._watch(with_rules=True)
    reload.join()
    guard._watch(with_rules=True)
    guard.end()

    assert all(sample.value == 0 for sample in guarded.repairs.samples())
    assert kernel.addresses == {address for _, address in changes.addresses}


def test_rules_that_were_refused_are_not_those_that_are_put_back(
    kernel: Kernel, changes: Host
) -> None:
    kernel.refuses = NEW
    with pytest.raises(FirewallError):
        changes.install_rules(NEW)
    kernel.refuses = kernel.rules = ()

    changes.install_again()

    assert list(kernel.rules) == OLD


def test_an_interface_with_another_name_has_what_is_configured_by_its_old_one(
    kernel: Kernel, changes: Host
) -> None:
    for old, new in (("eth1", "wan0"), ("wan0", "wan1")):
        changes.follow(old, new)
    changes.install_rules(NEW)
    changes.add_address("eth1", OTHER_VIP)
    changes.remove_address("eth1", VIP)

    assert {rule.interface for rule in kernel.rules} == {"wan1"}
    assert changes.addresses == {("wan1", OTHER_VIP)}
    assert kernel.addresses == {OTHER_VIP}


def test_what_is_left_to_a_successor_is_not_touched_any_more(
    kernel: Kernel, changes: Host
) -> None:
    changes.leave()
    changes.remove_address("eth1", VIP)
    changes.install_rules(NEW)

    assert kernel.addresses == {VIP}
    assert list(kernel.rules) == OLD
