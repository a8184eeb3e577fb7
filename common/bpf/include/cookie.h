/* The SYN cookie: the initial sequence number of the SYN-ACK.
 *
 *  31                              8 7   5  4  3     0
 * +---------------------------------+-----+---+-------+
 * |   24-bit MAC                    | MSS |SAK| WSCALE|
 * +---------------------------------+-----+---+-------+
 *
 * Twin: common/cluster/cookie.py
 */
#pragma once

#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>

#include "common/bpf/include/constants.h"
#include "common/bpf/include/siphash.h"

#define EPOCH_MS (EPOCH_S * 1000)

#define MSS_COUNT 8 /* three bits say which */

/* keys: current, previous. count: how many there are. */
struct secrets {
	__u64 keys[2][2];
	__u32 count;
	__u32 padding;
};

/* A flow as the client's packets have it, and the ISN of its SYN. */
struct handshake {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u32 client_isn;
};

/* All 64 bits that vouch for a handshake: the cookie has the lowest 24 of them. */
static __always_inline __u64 handshake_hash(const __u64 key[2], const struct handshake *flow,
					    __u32 epoch)
{
	__u64 word0 = flow->saddr | (__u64)flow->daddr << 32;
	__u64 word1 = flow->sport | (__u32)flow->dport << 16 |
		      (__u64)bpf_htonl(flow->client_isn) << 32;

	return siphash_20(key, word0, word1, bpf_htonl(epoch));
}

static __always_inline bool is_of_hash(__u32 cookie_isn, __u64 hash)
{
	return cookie_isn >> 8 == (hash & 0xffffff);
}

/* The low octet: what the client offered. mss: octets; wscale: as offered, or WSCALE_NONE. */
static __always_inline __u8 encode_offer(__u16 mss, bool sack, __u8 wscale)
{
	static const __u16 table[] = MSS_IPV4; /* ascending */
	__u32 index = 0;

#pragma unroll
	for (int i = 1; i < MSS_COUNT; i++) /* rounded down to an entry, never up */
		index += mss >= table[i];
	return index << 5 | sack << 4 | wscale;
}

/* The MSS that a cookie stands for, octets; never more than was offered.
 *
 * Compared, not looked up: clang puts a constant table into a section .rodata.cst16 of its own, but
 * among the variables of .rodata in the BTF, which Linux then refuses.
 */
static __always_inline __u16 cookie_mss(__u32 cookie_isn)
{
	static const __u16 table[] = MSS_IPV4;
	__u16 mss = table[0];

#pragma unroll
	for (int index = 1; index < MSS_COUNT; index++)
		if ((cookie_isn >> 5 & 7) >= index)
			mss = table[index];
	return mss;
}

/* The hash behind a cookie, if that is one of ours for this flow, and not too old; else 0. */
static __noinline __u64 check_cookie(const struct secrets *secrets, const struct handshake *flow,
				     __u32 cookie_isn, __u64 now_ms)
{
	__u32 epoch = now_ms / EPOCH_MS, in_epoch_ms = now_ms - (__u64)epoch * EPOCH_MS;
	/* shortly before its end, hosts whose clocks are ahead have begun the next one */
	bool has_next = in_epoch_ms >= (EPOCH_S - SKEW_S) * 1000;

	for (__u32 number = 0; number < 2; number++) {
		const __u64 *key = secrets->keys[number];
		__u64 hash;

		if (number >= secrets->count)
			break;
		hash = handshake_hash(key, flow, epoch);
		if (is_of_hash(cookie_isn, hash))
			return hash;
		hash = handshake_hash(key, flow, epoch - 1);
		if (is_of_hash(cookie_isn, hash))
			return hash;
		if (!has_next)
			continue;
		hash = handshake_hash(key, flow, epoch + 1);
		if (is_of_hash(cookie_isn, hash))
			return hash;
	}
	return 0;
}
