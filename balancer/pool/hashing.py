"""The hash of a key: plain, or keyed by a seed that the cluster's secret has.

Plain is MurmurHash3 (x86, 32 bits, seed 0). Anybody can compute it, so anybody can
find thousands of URLs that one backend gets. A seed of its own would not help: pairs
of words whose differences cancel collide under every seed. Keyed is SipHash-1-3, low
32 bits, which nobody without the seed can tell from chance. All balancers of a
cluster have the same seed, and keep it: another one moves every key.

Source: Appleby, MurmurHash3; Aumasson, Bernstein and Boßlet, "Hash-flooding DoS
        reloaded", 2012; Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
Twin:   balancer/offload/bpf/schedule.h:hash_key, keyed_hash
"""

from collections.abc import Callable

import mmh3
from siphash24 import siphash13

SEED = 0
Hash = Callable[[bytes], int]


def hash_key(key: bytes) -> int:
    """The 32-bit hash of a key, where the cluster has no seed."""
    return mmh3.hash(key, SEED, signed=False)


def hash_by(seed: bytes) -> Hash:
    """The 32-bit hash of a cluster. seed: 16 octets, or none."""
    if not seed:
        return hash_key
    return lambda key: siphash13(key, key=seed).intdigest() & 0xFFFFFFFF
