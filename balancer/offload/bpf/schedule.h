/* From a key to a backend: MurmurHash3 (x86, 32 bits, seed 0) and Maglev's table.
 *
 * Twin: balancer/pool/schedule.py:Maglev
 */
#pragma once

#include "maps.h"
#include "scratch.h"

#define TABLE_SIZE 65537

struct maglev {
	__u8 ids[TABLE_SIZE + 7];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __u32);
	__type(value, struct maglev);
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
__noinline __u32 hash_key(__u32 off, __u32 end)
{
	struct scratch *scratch = get_scratch();
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

/* The backend's id in the slot of a hash; 0: the service has no table. */
static __always_inline int pick(__u32 service, __u32 hash)
{
	struct maglev *table = bpf_map_lookup_elem(&tables, &service);
	__u64 low = hash & 0xffff, high = hash >> 16, slot;

	if (!table)
		return 0;
	/* hash % 65537, where 2**16 is −1 */
	slot = low >= high ? low - high : low + TABLE_SIZE - high;
	/* Linux 6.1 knows the bound of what it sees compared, not of what clang has made of it */
	asm volatile("" : "+r"(slot));
	return slot < TABLE_SIZE ? table->ids[slot] : 0;
}
