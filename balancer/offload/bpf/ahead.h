/* First payloads that have gone up, and which networks leave theirs unfinished.
 *
 * Until the portable engine has seen a first payload, and says so in `held`, this alone tells that
 * what comes right behind it is real. And who begins many long requests and ends few of them takes the
 * portable engine from others, so further ones of that network have a small budget of their own.
 */
#pragma once

#include "networks.h"

#define MAX_AHEAD 65536
#define AHEAD_SHIFT 4 /* times are in 1.6 s */
#define AHEAD_MAX 10 /* for longer than a flow is held by default */

/* By the hash of a flow's five-tuple, whose upper bits each has, and in place of the lower ones a
 * time. A later flow takes the place.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_AHEAD);
	__type(key, __u32);
	__type(value, __u64);
} ahead SEC(".maps");

static __always_inline __u32 ahead_time(void)
{
	return current_tenth() >> AHEAD_SHIFT;
}

static __always_inline __u64 *ahead_at(__u64 hash)
{
	__u32 place = hash % MAX_AHEAD;

	return bpf_map_lookup_elem(&ahead, &place);
}

/* Whether an entry is of the flow of that hash, and not too old. */
static __always_inline bool is_ahead(const __u64 *entry, __u64 hash)
{
	return entry && (*entry ^ hash) >> 16 == 0 &&
	       (__u16)(ahead_time() - *entry) <= AHEAD_MAX;
}

/* A first payload is about to go up. Returns: whether its network owes too many. */
static __always_inline bool note_first(struct network *network, const __u64 *entry, __u64 hash)
{
	__u32 now = ahead_time(), passed = now - network->owed_time;

	if (passed) {
		network->owed = passed < 16 && network->owed > 0 ? network->owed >> passed : 0;
		network->owed_time = now;
	}
	if (!is_ahead(entry, hash))
		__sync_fetch_and_add(&network->owed, 1);
	return network->owed > MAX_OWED;
}

/* It has gone up. */
static __always_inline void note_ahead(__u64 *entry, __u64 hash)
{
	*entry = (hash & ~0xffffULL) | (__u16)ahead_time();
}

/* A flow has been entered: what there was ahead of it has come to its end. */
static __always_inline void settle_ahead(__u64 hash, __be32 saddr, __u64 seed)
{
	struct network *network = network_of(saddr, seed);
	__u64 *entry = ahead_at(hash);

	if (!network || !is_ahead(entry, hash))
		return;
	*entry = 0;
	__sync_fetch_and_add(&network->owed, -1);
}
