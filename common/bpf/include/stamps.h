/* Timestamps that prove a handshake: T0's, and a handoff's TSecr.
 *
 * Twin: common/cluster/stamps.py
 */
#pragma once

#include "common/bpf/include/cookie.h"

static __always_inline __u32 t0_mac(__u64 hash)
{
	return (hash >> T0_MAC_SHIFT & STAMP_MAC_MASK >> CLOCK_BITS) << CLOCK_BITS;
}

/* The SYN-ACK's TSval: never 0. */
static __always_inline __u32 make_t0(__u64 hash, __u64 now_ms)
{
	return (t0_mac(hash) | (now_ms & CLOCK_MASK)) ?: 1;
}

/* Whether an echo is of the SYN-ACK's TSval, at whatever time. */
static __always_inline bool is_t0(__u64 hash, __u32 tsecr)
{
	return (tsecr & ~CLOCK_MASK) == t0_mac(hash);
}

/* What a handoff's TSecr proves, in its place there. bridge: the address that it is for. */
static __always_inline __u32 handoff_mac(__u64 hash, __be32 bridge)
{
	__u32 secret = (__u32)(hash >> SECRET_SHIFT) << 6;

	return secret * (bpf_ntohl(bridge) * (__u32)SPREAD | 1) >> 18 << CLOCK_BITS;
}

/* A health check's TSval: what of the hash no client ever sees. */
static __always_inline __u32 check_mark(__u64 hash)
{
	return hash >> SECRET_SHIFT;
}

/* A handoff's TSecr without its MAC. */
static __always_inline __u32 stripped(__u32 tsecr)
{
	return tsecr & ~STAMP_MAC_MASK;
}
