/* SipHash (Aumasson and Bernstein, 2012): 2-4 over a message of 20 octets, and 1-3 by the word. */
#pragma once

#include <linux/types.h>

static __always_inline __u64 rotated(__u64 value, int bits)
{
	return value << bits | value >> (64 - bits);
}

#define SIPROUND                                                                                   \
	do {                                                                                       \
		v0 += v1; v1 = rotated(v1, 13); v1 ^= v0; v0 = rotated(v0, 32);                    \
		v2 += v3; v3 = rotated(v3, 16); v3 ^= v2;                                          \
		v0 += v3; v3 = rotated(v3, 21); v3 ^= v0;                                          \
		v2 += v1; v1 = rotated(v1, 17); v1 ^= v2; v2 = rotated(v2, 32);                    \
	} while (0)

/* words: the message as it lies in memory. key: 16 octets likewise. */
static __always_inline __u64 siphash_20(const __u64 key[2], __u64 word0, __u64 word1, __u32 word2)
{
	__u64 v0 = key[0] ^ 0x736f6d6570736575ULL, v1 = key[1] ^ 0x646f72616e646f6dULL;
	__u64 v2 = key[0] ^ 0x6c7967656e657261ULL, v3 = key[1] ^ 0x7465646279746573ULL;
	__u64 last = word2 | 20ULL << 56;

	v3 ^= word0; SIPROUND; SIPROUND; v0 ^= word0;
	v3 ^= word1; SIPROUND; SIPROUND; v0 ^= word1;
	v3 ^= last; SIPROUND; SIPROUND; v0 ^= last;
	v2 ^= 0xff;
	SIPROUND; SIPROUND; SIPROUND; SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

struct siphash {
	__u64 v0, v1, v2, v3;
};

/* key: 16 octets as they lie in memory, in two words. */
static __always_inline struct siphash siphash_begin(__u64 key0, __u64 key1)
{
	return (struct siphash){
		key0 ^ 0x736f6d6570736575ULL, key1 ^ 0x646f72616e646f6dULL,
		key0 ^ 0x6c7967656e657261ULL, key1 ^ 0x7465646279746573ULL,
	};
}

/* One more word, with one round. The last has the message's length in its top octet. */
static __always_inline void siphash_1(struct siphash *hash, __u64 word)
{
	__u64 v0 = hash->v0, v1 = hash->v1, v2 = hash->v2, v3 = hash->v3 ^ word;

	SIPROUND;
	*hash = (struct siphash){v0 ^ word, v1, v2, v3};
}

static __always_inline __u64 siphash_end_3(const struct siphash *hash)
{
	__u64 v0 = hash->v0, v1 = hash->v1, v2 = hash->v2 ^ 0xff, v3 = hash->v3;

	SIPROUND; SIPROUND; SIPROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}
