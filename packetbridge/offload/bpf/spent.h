/* Cookies that are spent: their first data segment has opened a connection, and opens no second one.
 *
 * A cookie holds for minutes, its connection may be over in an instant. Handshakes are told apart by
 * the hash that vouches for them: of five-tuple, client's ISN, epoch and key. A bucket has the
 * fingerprints of the last fifteen, a cache line; the newest takes the oldest's place. So nothing is
 * swept, no clock is asked, and where more come than there is room for, old ones are forgotten: no
 * new connection is ever refused for that. Two processors that write at once may lose one, too.
 *
 * Twin: packetbridge/modes/spent.py
 */
#pragma once

#include "bridge.h"
#include "constants.h"

struct spent_bucket {
	__u32 count; /* of all that have come */
	__u32 fingerprints[SPENT_IN_BUCKET];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 17);
	__type(key, __u32);
	__type(value, struct spent_bucket);
} spent SEC(".maps");

const volatile __u32 spent_mask; /* of a hash: its bucket's number */

static __always_inline struct spent_bucket *bucket_of(__u64 hash)
{
	__u32 index = hash & spent_mask;

	return bpf_map_lookup_elem(&spent, &index);
}

/* Never 0, which is a free place's. */
static __always_inline __u32 fingerprint_of(__u64 hash)
{
	__u32 fingerprint = hash >> 32;

	return fingerprint ? fingerprint : 1;
}

static __always_inline bool is_in(const struct spent_bucket *bucket, __u32 fingerprint)
{
	__u32 all_differ = ~0U;

#pragma unroll
	for (int i = 0; i < SPENT_IN_BUCKET; i++) {
		__u32 differs = bucket->fingerprints[i] ^ fingerprint;

		differs |= -differs; /* the top bit, unless it is 0 */
		/* or clang makes branches of it, each of which doubles what the verifier looks at */
		asm volatile("" : "+r"(differs));
		all_differ &= differs;
	}
	return !(all_differ >> 31);
}

static __always_inline bool is_spent(__u64 hash)
{
	struct spent_bucket *bucket = bucket_of(hash);

	return bucket && is_in(bucket, fingerprint_of(hash));
}

static __always_inline void note_spent(__u64 hash)
{
	struct spent_bucket *bucket = bucket_of(hash);
	__u32 fingerprint = fingerprint_of(hash), place;

	if (!bucket || is_in(bucket, fingerprint))
		return;
	place = __sync_fetch_and_add(&bucket->count, 1) % SPENT_IN_BUCKET;
	asm volatile("" : "+r"(place)); /* or clang leaves the check out that the verifier wants */
	if (place < SPENT_IN_BUCKET)
		bucket->fingerprints[place] = fingerprint;
}
