/* From a key to a backend: a hash and a table of ids.
 *
 * The hash is MurmurHash3 (x86, 32 bits, seed 0) or, where the cluster has a seed, SipHash-1-3.
 * Maglev and rendezvous have a slot for a hash; round-robin and random have a turn for each unit of
 * weight, and take the next one, or any. Twin: balancer/pool/schedule.py, balancer/pool/hashing.py
 */
#pragma once

#include "flows.h"
#include "key.h"

#include "common/bpf/include/siphash.h"

#define PASS_UP -1
#define MAX_STEPS 32 /* more go up */

/* NONE: left to the portable engine. HASHING: by the key's slot. BOUNDED: by that, or a later slot
 * whose backend has room.
 */
enum scheduler {
	SCHEDULER_NONE,
	SCHEDULER_HASHING,
	SCHEDULER_ROUND_ROBIN,
	SCHEDULER_RANDOM,
	SCHEDULER_LEAST_FLOWS,
	SCHEDULER_BOUNDED,
};

/* How a service chooses. turns: how many its table has, where no hash decides; BOUNDED: how many
 * slots are tried before it goes up. turn: how many have been taken; written here.
 */
struct plan {
	struct key_spec key;
	struct key_spec fallback;
	enum scheduler scheduler;
	__u32 turns;
	__u64 turn;
};

struct weighted {
	__u16 id;
	__u16 weight;
};

/* A service's backends with a weight, by their ids. factor: percent of a fair share. */
struct pool {
	__u32 count;
	__u32 factor;
	__u64 total_weight;
	struct weighted backends[MAX_BACKENDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct pool);
} pools SEC(".maps");

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

const volatile bool has_seed;
const volatile __u64 hash_seed[2];

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

/* The same octets' hash under the cluster's seed. */
__noinline __u32 keyed_hash(struct scratch *scratch, __u32 off, __u32 end)
{
	struct siphash hash = siphash_begin(hash_seed[0], hash_seed[1]);
	__u64 last = (__u64)(end - off) << 56;
	__u32 rest;

	if (!scratch)
		return 0;
	for (int i = 0; i < STEPS_OF_8; i++) {
		if (off + 8 > end)
			break;
		siphash_1(&hash, *(__u64 *)at(scratch, off));
		off += 8;
	}
	rest = end - off;
	if (rest && rest < 8)
		last |= *(__u64 *)at(scratch, off) & ((1ULL << rest * 8) - 1);
	siphash_1(&hash, last);
	return siphash_end_3(&hash);
}

/* A hash % 65537, where 2**16 is −1. */
static __always_inline __u32 slot_of(__u32 hash)
{
	__u32 low = hash & 0xffff, high = hash >> 16;

	return low >= high ? low - high : low + TABLE_SIZE - high;
}

/* How many flows a backend has. */
static __always_inline __u64 load_of(__u32 service, __u32 id)
{
	union tag tag = {.service = service, .backend = id};
	__u64 *count = count_of(tag);

	return count ? *(volatile __u64 *)count : 0;
}

/* The backend with the fewest flows for its weight, the first of equals; 0: there is none.
 *
 * Twin: balancer/pool/schedule.py:LeastFlows
 */
__noinline int least_loaded(struct pool *pool, __u32 service)
{
	__u64 least = 0, weight = 0;
	int id = 0;

	if (!pool)
		return 0;
	for (int i = 0; i < MAX_BACKENDS; i++) {
		struct weighted *each = &pool->backends[i];
		__u64 load;

		if (i >= pool->count)
			break;
		load = load_of(service, each->id) + 1;
		if (!id || load * weight < least * each->weight) {
			id = each->id;
			least = load;
			weight = each->weight;
		}
	}
	return id;
}

/* All flows of a service's backends that have a weight. */
__noinline __u64 total_load(struct pool *pool, __u32 service)
{
	__u64 total = 0;

	if (!pool)
		return 0;
	for (int i = 0; i < MAX_BACKENDS; i++) {
		if (i >= pool->count)
			break;
		total += load_of(service, pool->backends[i].id);
	}
	return total;
}

/* The weight of a backend; 0: it has none. */
__noinline __u32 weight_of(struct pool *pool, __u32 id)
{
	if (!pool)
		return 0;
	for (int i = 0; i < MAX_BACKENDS; i++) {
		if (i >= pool->count)
			break;
		if (pool->backends[i].id == id)
			return pool->backends[i].weight;
	}
	return 0;
}

/* The first backend from a slot on that has room for one more flow, or PASS_UP.
 *
 * Below ceil(share / whole) is below share / whole. Twin: balancer/pool/schedule.py:BoundedLoad
 */
static __always_inline int with_room(struct pool *pool, struct ids *table, __u32 service,
				     __u64 slot, __u32 steps)
{
	__u64 most = pool->factor * (total_load(pool, service) + 1);
	__u64 whole = 100 * pool->total_weight;

	for (int i = 0; i < MAX_STEPS; i++) {
		__u32 id;

		if (i >= steps)
			break;
		asm volatile("" : "+r"(slot));
		if (slot >= TABLE_SIZE)
			slot = 0;
		id = table->ids[slot];
		if (load_of(service, id) * whole < most * weight_of(pool, id))
			return id;
		slot++;
	}
	return PASS_UP;
}

/* The id of the backend for the key that the scratch has; 0: the service has none to give. */
static __always_inline int pick(struct plan *plan, __u32 service, struct scratch *scratch)
{
	struct ids *table = bpf_map_lookup_elem(&tables, &service);
	struct pool *pool = bpf_map_lookup_elem(&pools, &service);
	__u64 slot;

	if (!table || !pool)
		return 0;
	if (plan->scheduler == SCHEDULER_LEAST_FLOWS)
		return least_loaded(pool, service);
	if (plan->scheduler == SCHEDULER_HASHING || plan->scheduler == SCHEDULER_BOUNDED)
		slot = slot_of(has_seed
				       ? keyed_hash(scratch, scratch->key.off, scratch->key.end)
				       : hash_key(scratch, scratch->key.off, scratch->key.end));
	else if (plan->scheduler == SCHEDULER_RANDOM)
		slot = (__u64)bpf_get_prandom_u32() * plan->turns >> 32;
	else
		slot = plan->turns ? __sync_fetch_and_add(&plan->turn, 1) % plan->turns : 0;
	if (plan->scheduler == SCHEDULER_BOUNDED)
		return with_room(pool, table, service, slot, plan->turns);
	/* Linux 6.1 knows the bound of what it sees compared, not of what clang has made of it */
	asm volatile("" : "+r"(slot));
	return slot < TABLE_SIZE ? table->ids[slot] : 0;
}
