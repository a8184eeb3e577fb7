"""The DSCP field, which names the VIP between balancer and bridge.

Source: RFC 2474 §3 (field), §6 (pool 2, `xxxx11`, for local use); RFC 3168 §5 (ECN).
Twin:   common/bpf/include/dscp.h
"""

DEFAULT = 3  # the first of pool 2; 1 has meant "drop me first" since RFC 8622
MAX = 63


def of_tos(tos: int) -> int:
    """The codepoint 0..63 in a TOS octet."""
    return tos >> 2


def with_dscp(tos: int, dscp: int) -> int:
    """The TOS octet with its codepoint replaced and its ECN bits kept."""
    return dscp << 2 | tos & 3
