/* The SYN cookie, checked and read. Keys and clock come from packetbridge/fastmaps.py.
 *
 * Source: Aumasson and Bernstein, "SipHash", 2012.
 * Twin:   common/cookie.py
 */
#pragma once

#include "bridge.h"

#define EPOCH_NS 64000000000ULL
#define MAX_KEYS 2
#define MAC_LEN 20 /* octets that are hashed */
#define WSCALE_NONE 15

/* clock_offset_ns: unix time − time since the boot. */
struct secrets {
	__u64 keys[MAX_KEYS][2];
	__u32 count;
	__u32 padding;
	__u64 clock_offset_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct secrets);
} secrets SEC(".maps");

/* What a first data segment says of the handshake before it. */
struct handshake {
	__be32 client;
	__be32 vip;
	__be16 client_port;
	__be16 vip_port;
	__u32 client_isn;
	__u32 cookie_isn;
};

struct sip {
	__u64 a, b, c, d;
};

static __always_inline __u64 rotated(__u64 word, int bits)
{
	return word << bits | word >> (64 - bits);
}

static __always_inline void sip_round(struct sip *v)
{
	v->a += v->b;
	v->b = rotated(v->b, 13) ^ v->a;
	v->a = rotated(v->a, 32);
	v->c += v->d;
	v->d = rotated(v->d, 16) ^ v->c;
	v->a += v->d;
	v->d = rotated(v->d, 21) ^ v->a;
	v->c += v->b;
	v->b = rotated(v->b, 17) ^ v->c;
	v->c = rotated(v->c, 32);
}

static __always_inline void sip_take(struct sip *v, __u64 word)
{
	v->d ^= word;
	sip_round(v);
	sip_round(v);
	v->a ^= word;
}

/* SipHash-2-4 of the addresses and ports (12 octets), client_isn and the epoch: its low 24 bits.
 *
 * first, second: the first 16 octets of these as little-endian words; epoch: in network order.
 * Global, so that the verifier looks at it once.
 */
__noinline __u32 cookie_mac(__u64 key0, __u64 key1, __u64 first, __u64 second, __be32 epoch)
{
	struct sip v = {
		key0 ^ 0x736f6d6570736575ULL, key1 ^ 0x646f72616e646f6dULL,
		key0 ^ 0x6c7967656e657261ULL, key1 ^ 0x7465646279746573ULL,
	};

	sip_take(&v, first);
	sip_take(&v, second);
	sip_take(&v, (__u64)MAC_LEN << 56 | epoch);
	v.c ^= 0xff;
	for (int i = 0; i < 4; i++)
		sip_round(&v);
	return (v.a ^ v.b ^ v.c ^ v.d) & 0xffffff;
}

/* Whether the cookie is ours, made in this epoch or a neighbouring one. Global as well. */
__noinline int cookie_holds(const struct handshake *handshake)
{
	__u32 zero = 0, epoch;
	struct secrets *known = bpf_map_lookup_elem(&secrets, &zero);
	__u64 first, second;

	if (!handshake || !known)
		return false;
	first = (__u64)handshake->vip << 32 | handshake->client;
	second = (__u64)bpf_htonl(handshake->client_isn) << 32 |
		 (__u32)handshake->vip_port << 16 | handshake->client_port;
	epoch = (bpf_ktime_get_boot_ns() + known->clock_offset_ns) / EPOCH_NS;
	for (int i = 0; i < MAX_KEYS; i++) {
		const __u64 *key = known->keys[i];

		if (i >= known->count)
			break;
		for (int step = 0; step < 3; step++) {
			__be32 at = bpf_htonl(epoch + (step < 2 ? -step : 1));

			if (cookie_mac(key[0], key[1], first, second, at) ==
			    handshake->cookie_isn >> 8)
				return true;
		}
	}
	return false;
}

/* Twin: common/cookie.py:MSS_IPV4 */
static __always_inline __u16 cookie_mss(__u32 cookie_isn)
{
	static const __u16 table[] = {536, 1200, 1300, 1360, 1400, 1440, 1460, 8960};

	return table[cookie_isn >> 5 & 7];
}
