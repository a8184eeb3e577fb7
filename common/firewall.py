"""The few rules that bring packets to a program, in nftables or iptables.

Rules stand in the raw hooks, before connection tracking. A kernel may lack
nftables' `queue` and still have the NFQUEUE target, so both are tried and the
first that works is taken. All rules of a program are in one table (nftables)
or in chains (iptables) of its own, made and removed at once.
"""

import subprocess
from dataclasses import dataclass
from typing import Protocol

_HOOKS = {"prerouting": "PREROUTING", "output": "OUTPUT"}


class FirewallError(Exception):
    """Neither nftables nor iptables can do it; says what is missing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a packet must be, and what becomes of it. None matches anything.

    hook:     `prerouting` or `output`. queue: NFQUEUE number; None: no connection tracking.
    bypass:   let packets pass when nobody listens to the queue, instead of dropping them.
    fragment: not the first fragment of a packet (those have no ports).
    """

    hook: str
    queue: int | None
    interface: str | None = None
    source: str | None = None
    destination: str | None = None
    protocol: str | None = None
    sport: int | None = None
    dport: int | None = None
    dscp: int | None = None
    mark: int | None = None
    fragment: bool = False
    bypass: bool = False

    def nft(self) -> str:
        """The rule in the words of nftables."""
        words = [
            f'iifname "{self.interface}"' if self.interface else "",
            f"ip saddr {self.source}" if self.source else "",
            f"ip daddr {self.destination}" if self.destination else "",
            f"ip dscp {self.dscp}" if self.dscp is not None else "",
            "ip frag-off & 0x1fff != 0" if self.fragment else "",
            f"ip protocol {self.protocol}" if self.protocol else "",
            f"{self.protocol} sport {self.sport}" if self.sport else "",
            f"{self.protocol} dport {self.dport}" if self.dport else "",
            f"meta mark {self.mark:#x}" if self.mark is not None else "",
            "notrack" if self.queue is None else f"queue num {self.queue}",
            "bypass" if self.bypass and self.queue is not None else "",
        ]
        return " ".join(word for word in words if word)

    def iptables(self) -> str:
        """The rule's matches and target in the words of iptables."""
        words = [
            f"-i {self.interface}" if self.interface else "",
            f"-s {self.source}" if self.source else "",
            f"-d {self.destination}" if self.destination else "",
            f"-p {self.protocol}" if self.protocol else "",
            "-f" if self.fragment else "",
            f"--sport {self.sport}" if self.sport else "",
            f"--dport {self.dport}" if self.dport else "",
            f"-m dscp --dscp {self.dscp}" if self.dscp is not None else "",
            f"-m mark --mark {self.mark:#x}" if self.mark is not None else "",
            "-j CT --notrack" if self.queue is None else f"-j NFQUEUE --queue-num {self.queue}",
            "--queue-bypass" if self.bypass and self.queue is not None else "",
        ]
        return " ".join(word for word in words if word)


class Firewall(Protocol):
    """One way to install rules under a name."""

    name: str

    def install(self, owner: str, rules: list[Rule]) -> None: ...
    def remove(self, owner: str) -> None: ...


class Nftables:
    """A table of our own."""

    name = "nftables"

    def install(self, owner: str, rules: list[Rule]) -> None:
        """Raises: FirewallError; nothing is installed then."""
        chains = "".join(
            f" chain {hook} {{ type filter hook {hook} priority raw; policy accept;\n"
            + "".join(f"  {rule.nft()}\n" for rule in rules if rule.hook == hook)
            + " }\n"
            for hook in _HOOKS
        )
        table = f"table ip {_nft_name(owner)}"
        # one transaction, which replaces what a killed predecessor left
        _run(["nft", "-f", "-"], f"{table}\ndelete {table}\n{table} {{\n{chains}}}\n")

    def remove(self, owner: str) -> None:
        """Take the table away, if it is there."""
        try:
            _run(["nft", "delete", "table", "ip", _nft_name(owner)])
        except FirewallError:
            pass


class Iptables:
    """Chains of our own in the raw table, whichever kernel interface iptables speaks."""

    name = "iptables"

    def install(self, owner: str, rules: list[Rule]) -> None:
        """Raises: FirewallError; nothing is installed then."""
        lines = ["*raw"]
        lines += [f":{_chain(owner, hook)} - [0:0]" for hook in _HOOKS]
        lines += [f"-A {_chain(owner, rule.hook)} {rule.iptables()}" for rule in rules]
        # Naming a chain empties it; a jump that a killed predecessor left is taken over.
        lines += [
            f"-I {built_in} -j {_chain(owner, hook)}" for hook, built_in in _HOOKS.items()
            if not self._has_jump(built_in, _chain(owner, hook))
        ]
        try:
            _run(["iptables-restore", "-w", "--noflush"], "\n".join([*lines, "COMMIT", ""]))
        except FirewallError:
            self.remove(owner)
            raise

    @staticmethod
    def _has_jump(built_in: str, chain: str) -> bool:
        try:
            _run(["iptables", "-w", "-t", "raw", "-C", built_in, "-j", chain])
        except FirewallError:
            return False
        return True

    def remove(self, owner: str) -> None:
        """Take the chains away, if they are there."""
        for hook, built_in in _HOOKS.items():
            chain = _chain(owner, hook)
            for arguments in (["-D", built_in, "-j", chain], ["-F", chain], ["-X", chain]):
                try:
                    _run(["iptables", "-w", "-t", "raw", *arguments])
                except FirewallError:
                    pass


FIREWALLS: tuple[Firewall, ...] = (Nftables(), Iptables())


def install(owner: str, rules: list[Rule]) -> Firewall:
    """Install `rules` in the first way that works. Raises: FirewallError."""
    refusals = []
    for firewall in FIREWALLS:
        try:
            firewall.install(owner, rules)
            return firewall
        except FirewallError as refusal:
            refusals.append(f"{firewall.name}: {refusal}")
    raise FirewallError(
        "no packets can be queued: the kernel needs CONFIG_NFT_QUEUE with the package nftables, or "
        "CONFIG_NETFILTER_XT_TARGET_NFQUEUE with the package iptables (" + "; ".join(refusals) + ")"
    )


def remove(owner: str) -> None:
    """Remove what any of the ways may have installed."""
    for firewall in FIREWALLS:
        firewall.remove(owner)


def _nft_name(owner: str) -> str:
    return "l3dsr_" + owner.replace("-", "_")


def _chain(owner: str, hook: str) -> str:
    return f"L3DSR-{owner.upper()}-{'PRE' if hook == 'prerouting' else 'OUT'}"


def _run(command: list[str], stdin: str = "") -> None:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FirewallError(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise FirewallError(message[:300])
