/* First payloads that have gone up, and which networks leave theirs unfinished.
 *
 * Until the portable engine has seen a first payload, and says so in `held`, this alone tells that
 * what comes right behind it is real. And who begins many long requests and ends few of them takes the
 * portable engine from others, so further ones of that network have a small budget of their own.
 */
#pragma once

#include "maps.h"

#include "common/bpf/include/allowance.h"

#define MAX_AHEAD 65536
#define AHEAD_SHIFT 4 /* times are in 1.6 s */
#define AHEAD_MAX 10 /* for longer than a flow is held by default */
#define MAX_DEBTORS 4096
#define DEBTORS_BITS 12
#define MAX_DEBT 256 /* first payloads of a network that wait at once */

/* By the hash of a flow's five-tuple, whose upper bits each has, and in place of the lower ones a
 * time. A later flow takes the place.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_AHEAD);
	__type(key, __u32);
	__type(value, __u64);
} ahead SEC(".maps");

/* How many first payloads of a network's have gone up and become no flow; halved with time. */
struct debt {
	__s32 count;
	__u32 time;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEBTORS);
	__type(key, __u32);
	__type(value, struct debt);
} debts SEC(".maps");

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

/* The debt of a source's network, /24. seed: secret, so that nobody chooses whom to share it with. */
static __always_inline struct debt *debt_of(__be32 saddr, __u64 seed)
{
	__u64 network = bpf_ntohl(saddr) >> 8;
	__u32 place = (network ^ seed) * 0x9e3779b97f4a7c15ULL >> (64 - DEBTORS_BITS);

	return bpf_map_lookup_elem(&debts, &place);
}

/* A first payload goes up. Returns: whether its network owes too many. */
static __always_inline bool note_ahead(__u64 hash, __be32 saddr, __u64 seed)
{
	struct debt *debt = debt_of(saddr, seed);
	__u64 *entry = ahead_at(hash);
	__u32 now = ahead_time(), passed;

	if (!debt || !entry)
		return false;
	passed = now - debt->time;
	if (passed) {
		debt->count = passed < 16 && debt->count > 0 ? debt->count >> passed : 0;
		debt->time = now;
	}
	if (!is_ahead(entry, hash))
		__sync_fetch_and_add(&debt->count, 1);
	*entry = (hash & ~0xffffULL) | (__u16)now;
	return debt->count > MAX_DEBT;
}

/* A flow has been entered: what there was ahead of it has come to its end. */
static __always_inline void settle_ahead(__u64 hash, __be32 saddr, __u64 seed)
{
	struct debt *debt = debt_of(saddr, seed);
	__u64 *entry = ahead_at(hash);

	if (!debt || !is_ahead(entry, hash))
		return;
	*entry = 0;
	__sync_fetch_and_add(&debt->count, -1);
}
