"""What this kernel can do, found out by asking it, never by its version."""

import socket

from common.bpf.libbpf import libbpf, take_log

_FUNC = 12  # BTF_KIND_FUNC
_ETHERNET = 1  # linux/if_arp.h


def refusal(engine: str, interface: str) -> str:
    """Why an interface cannot have the fast engine; empty if nothing is seen to be against it.

    engine: as configured.
    """
    if engine == "portable":
        return "as configured"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((interface, 0))
        kind = link.getsockname()[3]
    return "" if kind == _ETHERNET else f"{interface} is not Ethernet"


def missing_kfuncs(*names: str) -> list[str]:
    """Those of some kernel functions that this kernel's BTF has not; all of them without BTF."""
    btf = libbpf().btf__load_vmlinux_btf()
    take_log()
    if not btf:
        return list(names)
    try:
        return [name for name in names
                if libbpf().btf__find_by_name_kind(btf, name.encode(), _FUNC) < 0]
    finally:
        libbpf().btf__free(btf)
