/* From a key to a backend: MurmurHash3 (x86, 32 bits, seed 0) and a table of ids.
 *
 * Maglev and rendezvous have a slot for a hash; round-robin and random have a turn for each unit of
 * weight, and take the next one, or any. Twin: balancer/pool/schedule.py
 */
#pragma once

#include "key.h"
#include "maps.h"

#define PASS_UP -1

/* NONE: left to the portable engine. HASHING: by the key's slot. */
enum scheduler { SCHEDULER_NONE, SCHEDULER_HASHING, SCHEDULER_ROUND_ROBIN, SCHEDULER_RANDOM };

/* How a service chooses. turns: how many its table has, where no hash decides. turn: how many have
 * been taken; written here.
 */
struct plan {
	struct key_spec key;
	struct key_spec fallback;
	enum scheduler scheduler;
	__u32 turns;
	__u64 turn;
};

struct ids {
	__u8 ids[TABLE_SIZE + 7];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct plan);
} plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct ids);
} tables SEC(".maps");

static __always_inline __u32 rotl(__u32 value, int bits)
{
	return value << bits | value >> (32 - bits);
}

static __always_inline __u32 scrambled(__u32 word)
{
	return rotl(word * 0xcc9e2d51, 15) * 0x1b873593;
}

static __always_inline __u32 mixed(__u32 hash, __u32 word)
{
	__u32 times4;

	hash = rotl(hash ^ scrambled(word), 13);
	times4 = hash << 2;
	asm volatile("" : "+r"(times4)); /* or it is multiplied, which takes longer */
	return hash + times4 + 0xe6546b64;
}

/* The hash of the scratch's octets from `off` to `end`. */
__noinline __u32 hash_key(struct scratch *scratch, __u32 off, __u32 end)
{
	__u32 len = end - off, hash = 0, rest;

	if (!scratch)
		return 0;
	for (int i = 0; i < STEPS_OF_8; i++) {
		__u64 words;

		if (off + 8 > end)
			break;
		words = *(__u64 *)at(scratch, off);
		hash = mixed(hash, words);
		hash = mixed(hash, words >> 32);
		off += 8;
	}
	rest = end - off;
	if (rest >= 4 && rest < 8) {
		hash = mixed(hash, *(__u32 *)at(scratch, off));
		off += 4;
		rest -= 4;
	}
	if (rest && rest < 4)
		hash ^= scrambled(*(__u32 *)at(scratch, off) & ((1U << rest * 8) - 1));
	hash ^= len;
	hash = (hash ^ hash >> 16) * 0x85ebca6b;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* A hash % 65537, where 2**16 is −1. */
static __always_inline __u32 slot_of(__u32 hash)
{
	__u32 low = hash & 0xffff, high = hash >> 16;

	return low >= high ? low - high : low + TABLE_SIZE - high;
}

/* The id of the backend for the key that the scratch has; 0: the service has none to give. */
static __always_inline int pick(struct plan *plan, __u32 service, struct scratch *scratch)
{
	struct ids *table = bpf_map_lookup_elem(&tables, &service);
	__u64 slot;

	if (!table)
		return 0;
	if (plan->scheduler == SCHEDULER_HASHING)
		slot = slot_of(hash_key(scratch, scratch->key.off, scratch->key.end));
	else if (plan->scheduler == SCHEDULER_RANDOM)
		slot = (__u64)bpf_get_prandom_u32() * plan->turns >> 32;
	else
		slot = plan->turns ? __sync_fetch_and_add(&plan->turn, 1) % plan->turns : 0;
	/* Linux 6.1 knows the bound of what it sees compared, not of what clang has made of it */
	asm volatile("" : "+r"(slot));
	return slot < TABLE_SIZE ? table->ids[slot] : 0;
}
