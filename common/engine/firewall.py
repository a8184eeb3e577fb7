"""The few rules that bring packets to a program, in nftables or iptables.

Rules stand in the raw hooks, before connection tracking. A kernel may lack
nftables' `queue` and still have the NFQUEUE target, so all ways are tried and
the first that works is taken. All rules of a program are in one table
(nftables) or in chains (iptables) of its own, and are replaced at once: while
one set of rules follows another, no packet passes in between.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

_HOOKS = {"prerouting": "PREROUTING", "output": "OUTPUT"}


class FirewallError(Exception):
    """It cannot be done this way, or in any; says what is missing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a packet must be, and what becomes of it: no other rule is asked. None matches anything.

    hook:     `prerouting` or `output`. queue: NFQUEUE number; None: no connection tracking.
    drop:     nothing more of it. limit: packets a second; beyond it other rules are asked.
    interface: where it comes in. other_than: it goes out by another interface than this one.
    bypass:   let packets pass when nobody listens to the queue, instead of dropping them.
    fragment: not the first fragment of a packet (those have no ports).
    """

    hook: str
    queue: int | None
    interface: str | None = None
    other_than: str | None = None
    source: str | None = None
    destination: str | None = None
    protocol: str | None = None
    sport: int | None = None
    dport: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    dscp: int | None = None
    mark: int | None = None
    fragment: bool = False
    bypass: bool = False
    drop: bool = False
    limit: int | None = None

    def nft(self) -> str:
        """The rule in the words of nftables."""
        words = [
            f'iifname "{self.interface}"' if self.interface else "",
            f'oifname != "{self.other_than}"' if self.other_than else "",
            f"ip saddr {self.source}" if self.source else "",
            f"ip daddr {self.destination}" if self.destination else "",
            f"ip dscp {self.dscp}" if self.dscp is not None else "",
            "ip frag-off & 0x1fff != 0" if self.fragment else "",
            f"ip protocol {self.protocol}" if self.protocol else "",
            f"{self.protocol} sport {self.sport}" if self.sport else "",
            f"{self.protocol} dport {self.dport}" if self.dport else "",
            f"icmp type {self.icmp_type}" if self.icmp_type is not None else "",
            f"icmp code {self.icmp_code}" if self.icmp_code is not None else "",
            f"meta mark {self.mark:#x}" if self.mark is not None else "",
            f"limit rate {self.limit}/second burst {self._burst} packets" if self.limit else "",
            "drop" if self.drop else
            "notrack accept" if self.queue is None else f"queue num {self.queue}",
            "bypass" if self.bypass and self.queue is not None and not self.drop else "",
        ]
        return " ".join(word for word in words if word)

    def iptables(self) -> list[str]:
        """The rule's matches and target in the words of iptables: one line, or two."""
        words = [
            f"-i {self.interface}" if self.interface else "",
            f"! -o {self.other_than}" if self.other_than else "",
            f"-s {self.source}" if self.source else "",
            f"-d {self.destination}" if self.destination else "",
            f"-p {self.protocol}" if self.protocol else "",
            "-f" if self.fragment else "",
            f"--sport {self.sport}" if self.sport else "",
            f"--dport {self.dport}" if self.dport else "",
            f"--icmp-type {self._icmp()}" if self.icmp_type is not None else "",
            f"-m dscp --dscp {self.dscp}" if self.dscp is not None else "",
            f"-m mark --mark {self.mark:#x}" if self.mark is not None else "",
            f"-m limit --limit {self.limit}/second --limit-burst {self._burst}"
            if self.limit else "",
        ]
        matches = " ".join(word for word in words if word)
        if self.drop:
            return [f"{matches} -j DROP"]
        if self.queue is None:
            return [f"{matches} -j CT --notrack", f"{matches} -j RETURN"]
        bypass = " --queue-bypass" if self.bypass else ""
        return [f"{matches} -j NFQUEUE --queue-num {self.queue}{bypass}"]

    @property
    def _burst(self) -> int:
        """A tenth of a second's."""
        return max((self.limit or 0) // 10, 1)

    def _icmp(self) -> str:
        return f"{self.icmp_type}" + (f"/{self.icmp_code}" if self.icmp_code is not None else "")


def handed_over(rules: Sequence[Rule]) -> list[Rule]:
    """Rules that leave packets to the host while nobody listens to their queue.

    What would be dropped beyond a limit is the host's as well.
    """
    return list(dict.fromkeys(
        replace(rule, bypass=rule.queue is not None and not rule.drop)
        for rule in rules if not rule.drop or rule.source))


class Way(Protocol):
    """One way to install rules under the name of their owner."""

    name: str

    def install(self, owner: str, rules: Sequence[Rule]) -> None:
        """Install rules in place of those that the owner has. Raises: FirewallError."""

    def remove(self, owner: str) -> None:
        """Remove the owner's rules, if there are any. Raises: FirewallError if they stay."""

    def seen(self, owner: str) -> str:
        """The owner's rules as they are, in its own words; empty if there are none."""

    def missing(self) -> str:
        """What this host would need for it; empty if nothing is seen to be missing."""


class Nftables:
    """A table of our own."""

    name = "nftables"
    _NEEDS = (
        ("accept", "CONFIG_NF_TABLES_IPV4"),
        ("queue num 0", "CONFIG_NFT_QUEUE"),
        ("notrack", "CONFIG_NFT_CT"),
        ("limit rate 1/second", "CONFIG_NFT_LIMIT"),
    )

    def install(self, owner: str, rules: Sequence[Rule]) -> None:
        """As Way."""
        _run(["nft", "-f", "-"], self.script(owner, rules))

    def remove(self, owner: str) -> None:
        """As Way."""
        if not _refusal(["nft", "list", "table", "ip", _table(owner)]):
            _run(["nft", "delete", "table", "ip", _table(owner)])

    def seen(self, owner: str) -> str:
        """As Way."""
        return _printed(["nft", "list", "table", "ip", _table(owner)])

    def missing(self) -> str:
        """As Way. A table that is checked, but not made."""
        if not shutil.which("nft"):
            return "nft is not installed (package nftables)"
        for words, option in self._NEEDS:
            script = f"table ip l3dsr_probe {{\n chain probe {{\n  {words}\n }}\n}}\n"
            if _refusal(["nft", "-c", "-f", "-"], script):
                return f"the kernel has no {option}"
        return ""

    @staticmethod
    def script(owner: str, rules: Sequence[Rule]) -> str:
        """One transaction: the old table away, if there is one, and the new one there."""
        table = f"table ip {_table(owner)}"
        chains = "".join(
            f" chain {hook} {{\n  type filter hook {hook} priority raw; policy accept;\n"
            + "".join(f"  {rule.nft()}\n" for rule in rules if rule.hook == hook)
            + " }\n"
            for hook in _HOOKS
        )
        return f"{table}\ndelete {table}\n{table} {{\n{chains}}}\n"


class Iptables:
    """Chains of our own in the raw table. name: which iptables, of those that there may be."""

    _NEEDS = (
        ("-j ACCEPT", "raw table (CONFIG_IP_NF_RAW, or CONFIG_NFT_COMPAT)"),
        ("-j NFQUEUE --queue-num 0", "CONFIG_NETFILTER_XT_TARGET_NFQUEUE"),
        ("-j CT --notrack", "CONFIG_NETFILTER_XT_TARGET_CT"),
        ("-m dscp --dscp 3", "CONFIG_NETFILTER_XT_MATCH_DSCP"),
        ("-m mark --mark 1", "CONFIG_NETFILTER_XT_MATCH_MARK"),
        ("-m limit --limit 1/second", "CONFIG_NETFILTER_XT_MATCH_LIMIT"),
    )

    def __init__(self, name: str) -> None:
        self.name = name

    def install(self, owner: str, rules: Sequence[Rule]) -> None:
        """As Way."""
        jumps = {hook for hook in _HOOKS if self._jump("-C", owner, hook)}
        self._restore(self.script(owner, rules, jumps))

    def remove(self, owner: str) -> None:
        """As Way."""
        for hook in _HOOKS:
            chain = _chain(owner, hook)
            if _refusal(self._raw("-S", chain)):
                continue
            while self._jump("-D", owner, hook):
                pass
            _run(self._raw("-F", chain))
            _run(self._raw("-X", chain))

    def seen(self, owner: str) -> str:
        """As Way: our chains' rules, and those that lead there."""
        chains = {_chain(owner, hook) for hook in _HOOKS}
        return "\n".join(line for line in _printed(self._raw("-S")).splitlines()
                         if line.startswith("-A") and chains & set(line.split()))

    def missing(self) -> str:
        """As Way. A chain that nothing jumps to."""
        if not shutil.which(self.name):
            return f"{self.name} is not installed (package iptables)"
        chain = "L3DSR-PROBE"
        try:
            for words, option in self._NEEDS:
                try:
                    self._restore(f"*raw\n:{chain} - [0:0]\n-A {chain} {words}\nCOMMIT\n")
                except FirewallError:
                    return f"the kernel has no {option}"
        finally:
            for act in ("-F", "-X"):
                _refusal(self._raw(act, chain))
        return ""

    @staticmethod
    def script(owner: str, rules: Sequence[Rule], jumps: set[str]) -> str:
        """One transaction: chains of ours that there are become empty, and all are filled.

        jumps: the hooks from where there is a jump to our chain already.
        """
        return "\n".join([
            "*raw",
            *(f":{_chain(owner, hook)} - [0:0]" for hook in _HOOKS),
            *(f"-A {_chain(owner, rule.hook)} {words}"
              for rule in rules for words in rule.iptables()),
            *(f"-I {built_in} -j {_chain(owner, hook)}"
              for hook, built_in in _HOOKS.items() if hook not in jumps),
            "COMMIT\n",
        ])

    def _raw(self, act: str, *words: str) -> list[str]:
        return [self.name, "-w", "-t", "raw", act, *words]

    def _jump(self, act: str, owner: str, hook: str) -> bool:
        """-C: whether there is a jump to our chain. -D: whether there was one to remove."""
        return not _refusal(self._raw(act, _HOOKS[hook], "-j", _chain(owner, hook)))

    def _restore(self, script: str) -> None:
        _run([f"{self.name}-restore", "-w", "--noflush"], script)


WAYS: dict[str, Way] = {
    way.name: way
    for way in (Nftables(), Iptables("iptables"), Iptables("iptables-nft"),
                Iptables("iptables-legacy"))
}


def none_works(refusals: dict[str, str]) -> FirewallError:
    """What to tell an operator when no way works.

    refusals: the name of each way, and what it said.
    """
    reasons = "; ".join(
        f"{name}: {WAYS[name].missing() or refusal}" for name, refusal in refusals.items()
    )
    return FirewallError(f"cannot queue packets, since none of these ways works: {reasons}")


def _table(owner: str) -> str:
    return "l3dsr_" + owner.replace("-", "_")


def _chain(owner: str, hook: str) -> str:
    return f"L3DSR-{owner.upper()}-{'PRE' if hook == 'prerouting' else 'OUT'}"


def _run(command: list[str], stdin: str = "") -> None:
    refusal = _refusal(command, stdin)
    if refusal:
        raise FirewallError(refusal)


def _printed(command: list[str]) -> str:
    """Run a command. Returns: what it prints; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout


def _refusal(command: list[str], stdin: str = "") -> str:
    """Run a command. Returns: what it complains of, in one line; nothing if it does not."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]} cannot be run ({error.strerror})"
    if not done.returncode:
        return ""
    return " ".join(done.stderr.split())[:300] or f"{command[0]}: exit code {done.returncode}"
