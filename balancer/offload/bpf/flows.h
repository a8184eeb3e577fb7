/* The flow table: which backend a client's connection has.
 *
 * An array of buckets of one cache line, two flows in each. A flow may stand in either of two
 * buckets, and is entered where there is more room, so a table that is twice as large as need be
 * hardly ever has both full. To find one costs no call and, in a large table, one miss of the
 * cache; the kernel's hash costs three.
 *
 * Whoever writes a place claims it first: its tag tells whose the place is and changes at once.
 * Fields that say when and how a flow was last seen are written by whoever sees it, as in the
 * kernel's hash.
 *
 * The daemon reads these layouts from the object's BTF (balancer/offload/flow_map.py).
 */
#pragma once

#include "ahead.h"

#define BUCKET_FLOWS 2
#define BUCKET_COUNTS 8 /* of backends' flows in the room of a bucket */

/* backend: 0 where there is no flow. state: of balancer/flows.py, and bits beside STATE_MASK. */
union tag {
	struct {
		__u8 service;
		__u8 backend;
		__u8 state;
		__u8 created_high;
	};
	__u32 word;
};

#define FREE ((union tag){.word = 0})
#define CLAIMED ((union tag){.service = 0xff}) /* of no backend: somebody writes this place */

/* Twin: balancer/flows.py:BackendFlow
 *
 * number: of a flow with timestamps its ts_shift, of a bare one its noted_seq.
 * created_ms: unix time, its low bits; tag.created_high has eight more. seen_ms: its low bits.
 */
struct flow {
	struct five_tuple ends;
	__u32 client_isn;
	__u32 number;
	__u32 created_ms;
	__u32 seen_ms;
	union tag tag;
};

struct bucket {
	struct flow flows[BUCKET_FLOWS];
};

/* In place of a bucket after the last. seed: of the hash; secret. count: of flows. */
struct table {
	__u64 seed;
	__u64 count;
	__u8 padding[sizeof(struct bucket) - 16];
};

SHARE_TYPE(table, struct table);

/* After that, how many flows each backend has, by its place in arrays. */
struct backend_counts {
	__u64 flows[BUCKET_COUNTS];
};

SHARE_TYPE(backend_counts, struct backend_counts);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* begins at a page, so buckets are whole cache lines */
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct bucket);
} flows SEC(".maps");

const volatile __u32 bucket_mask; /* how many buckets, a power of two, less one */
const volatile __u64 max_flows;

/* Only who knows the seed knows which flows share a bucket. */
static __always_inline __u64 hash_of(const struct five_tuple *ends, __u64 seed)
{
	__u64 hash = (__u64)ends->saddr << 32 | (__u32)ends->sport << 16 | ends->dport;

	hash = (hash ^ seed) * 0x9e3779b97f4a7c15ULL;
	hash ^= hash >> 32 ^ ends->daddr;
	hash *= 0xbf58476d1ce4e5b9ULL;
	hash ^= hash >> 29;
	hash *= 0x94d049bb133111ebULL;
	return hash ^ hash >> 31;
}

static __always_inline struct bucket *bucket_at(__u32 place)
{
	return bpf_map_lookup_elem(&flows, &place);
}

static __always_inline struct table *get_table(void)
{
	return (struct table *)bucket_at(bucket_mask + 1);
}

/* The tag, read once: others change it. */
static __always_inline union tag tag_of(const struct flow *flow)
{
	return (union tag){.word = *(const volatile __u32 *)&flow->tag.word};
}

static __always_inline bool has_ends(const struct flow *flow, const struct five_tuple *ends)
{
	return flow->ends.saddr == ends->saddr && flow->ends.sport == ends->sport &&
	       flow->ends.dport == ends->dport && flow->ends.daddr == ends->daddr;
}

static __always_inline bool is_of(const struct flow *flow, const struct five_tuple *ends)
{
	return has_ends(flow, ends) && flow->tag.backend;
}

static __always_inline struct flow *find_in(struct bucket *bucket, const struct five_tuple *ends)
{
	if (!bucket)
		return NULL;
	return is_of(&bucket->flows[0], ends)	? &bucket->flows[0]
	       : is_of(&bucket->flows[1], ends) ? &bucket->flows[1]
						: NULL;
}

/* A flow, however long it has been idle, or NULL. */
static __always_inline struct flow *look_up(const struct five_tuple *ends, __u64 hash)
{
	return find_in(bucket_at(hash & bucket_mask), ends)
		       ?: find_in(bucket_at(hash >> 32 & bucket_mask), ends);
}

static __always_inline __u8 state_of(const struct flow *flow)
{
	return flow->tag.state & STATE_MASK;
}

static __always_inline bool is_idle(const struct settings *settings, const struct flow *flow,
				    __u64 now_ms)
{
	__u64 timeout_ms = settings->timeouts_ms[state_of(flow)];

	return (__s32)((__u32)now_ms - flow->seen_ms) >= (__s64)timeout_ms;
}

static __always_inline void set_created(struct flow *flow, __u64 now_ms)
{
	flow->created_ms = now_ms;
	flow->tag.created_high = now_ms >> 32;
}

static __always_inline __u64 age_ms(const struct flow *flow, __u64 now_ms)
{
	__u64 created_ms = (__u64)flow->tag.created_high << 32 | flow->created_ms;

	return (now_ms - created_ms) & ((1ULL << CREATED_BITS) - 1);
}

static __always_inline bool change_tag(struct flow *flow, union tag from, union tag to)
{
	return __sync_val_compare_and_swap(&flow->tag.word, from.word, to.word) == from.word;
}

static __always_inline void set_tag(struct flow *flow, union tag tag)
{
	__sync_lock_test_and_set(&flow->tag.word, tag.word);
}

static __always_inline void set_state(struct flow *flow, __u8 state)
{
	union tag before = tag_of(flow), after = before;

	after.state = state | (before.state & ~STATE_MASK);
	if (before.backend)
		change_tag(flow, before, after);
}

/* From now on all of a flow's packets go up. */
static __always_inline void send_up(struct flow *flow)
{
	union tag before = tag_of(flow), after = before;

	after.state |= GOES_UP;
	if (before.backend)
		change_tag(flow, before, after);
}

/* Claim a place whose flow has these ends, unless somebody else does. was: its tag, then. */
static __always_inline bool claim(struct flow *flow, const struct five_tuple *ends, union tag *was)
{
	*was = tag_of(flow);
	if (!was->backend || !change_tag(flow, *was, CLAIMED))
		return false;
	if (has_ends(flow, ends))
		return true;
	set_tag(flow, *was); /* it has become another flow's since it was found */
	return false;
}

/* Where a backend's flows are counted. tag: of such a flow. */
static __always_inline __u64 *count_of(union tag tag)
{
	__u32 place = place_of(tag.service, tag.backend);
	struct backend_counts *counts = (struct backend_counts *)bucket_at(
		bucket_mask + 2 + place / BUCKET_COUNTS);

	return counts ? &counts->flows[place % BUCKET_COUNTS] : NULL;
}

/* Note that a backend has one flow more, or less. Whoever claims a place does, so it is exact. */
static __always_inline void count_flow(union tag tag, __s64 change)
{
	__u64 *count = count_of(tag);

	if (count)
		__sync_fetch_and_add(count, change);
}

static __always_inline void count_instead(union tag was, union tag is)
{
	if (was.service == is.service && was.backend == is.backend)
		return;
	count_flow(was, -1);
	count_flow(is, 1);
}

/* Fill a place that is claimed; the tag last, which makes it known. */
static __always_inline int fill(struct flow *place, const struct flow *made)
{
	place->ends = made->ends;
	place->client_isn = made->client_isn;
	place->number = made->number;
	place->created_ms = made->created_ms;
	place->seen_ms = made->seen_ms;
	set_tag(place, made->tag);
	return ENTERED;
}

static __always_inline struct flow *claim_free(struct bucket *bucket)
{
	for (int i = 0; i < BUCKET_FLOWS; i++)
		if (!bucket->flows[i].tag.word && change_tag(&bucket->flows[i], FREE, CLAIMED))
			return &bucket->flows[i];
	return NULL;
}

static __always_inline __u32 count_free(const struct bucket *bucket)
{
	return !bucket->flows[0].tag.word + !bucket->flows[1].tag.word;
}

/* How ready to go: by state, and by how long it has been idle. */
static __always_inline __u64 readiness(const struct settings *settings, const struct flow *flow,
				       __u64 now_ms)
{
	__u64 rank = is_idle(settings, flow, now_ms) ? IDLE : state_of(flow);
	__s32 idle_ms = (__u32)now_ms - flow->seen_ms;

	return rank << 32 | (idle_ms > 0 ? idle_ms : 0);
}

/* Enter a flow in place of another one, the readiest to go. least: what rank that must have. */
static __always_inline int displace(struct bucket *first, struct bucket *second,
				    const struct flow *made, __u64 now_ms, __u32 least)
{
	const struct settings *settings = get_settings();
	struct flow *leaving = NULL;
	union tag tag = FREE;
	__u64 most = 0;

	if (!settings)
		return CROWDED;
	for (int i = 0; i < 2 * BUCKET_FLOWS; i++) {
		struct flow *flow = i < BUCKET_FLOWS ? &first->flows[i]
						     : &second->flows[i - BUCKET_FLOWS];
		union tag found = tag_of(flow);
		__u64 ready = readiness(settings, flow, now_ms);

		if (found.backend && ready >> 32 >= least && (!leaving || ready > most)) {
			leaving = flow;
			most = ready;
			tag = found;
		}
	}
	if (!leaving || !change_tag(leaving, tag, CLAIMED))
		return CROWDED;
	count_instead(tag, made->tag);
	return fill(leaving, made);
}

/* Enter a flow, in place of one with the same ends if there is one.
 *
 * hash: of its ends. least: the rank that another flow must have to go for it. Global, so that it is
 * verified once.
 */
__noinline int enter_flow(const struct flow *made, __u64 hash, __u64 now_ms, __u32 least)
{
	struct table *table = get_table();
	struct bucket *first, *second;
	struct flow *place;
	union tag was;
	int result;

	if (!made || !table)
		return TABLE_FULL;
	first = bucket_at(hash & bucket_mask);
	second = bucket_at(hash >> 32 & bucket_mask);
	if (!first || !second)
		return TABLE_FULL;
	place = find_in(first, &made->ends) ?: find_in(second, &made->ends);
	if (place) {
		if (!claim(place, &made->ends, &was))
			return CROWDED;
		count_instead(was, made->tag);
		return fill(place, made);
	}
	if (table->count < max_flows) {
		if (count_free(second) > count_free(first))
			place = claim_free(second) ?: claim_free(first);
		else
			place = claim_free(first) ?: claim_free(second);
		if (place) {
			__sync_fetch_and_add(&table->count, 1);
			count_flow(made->tag, 1);
			return fill(place, made);
		}
	}
	result = displace(first, second, made, now_ms, least);
	return result == CROWDED && table->count >= max_flows ? TABLE_FULL : result;
}

/* Remove a flow, wherever it stands. Returns: whether there was one. */
static __always_inline bool remove_from(struct table *table, const struct five_tuple *ends,
					__u64 seed)
{
	__u64 hash = hash_of(ends, seed);
	bool has_gone = false;
	union tag was;

	for (int i = 0; i < 2 * BUCKET_FLOWS; i++) { /* two, if two have entered it at once */
		struct flow *found = look_up(ends, hash);

		if (!found)
			break;
		if (claim(found, ends, &was)) {
			set_tag(found, FREE);
			__sync_fetch_and_add(&table->count, -1);
			count_flow(was, -1);
			has_gone = true;
		}
	}
	return has_gone;
}

/* --- for the daemon, which writes into the table by these programs alone --- */

struct flow_request {
	struct flow flow;
	__u64 now_ms;
	__u32 least;
	__u32 padding;
};

/* Enter it. Returns: what became of it. */
SEC("syscall")
int write_flow(struct flow_request *request)
{
	struct settings *settings = get_settings();
	struct flow made = request->flow;
	__u64 hash;

	if (!settings)
		return TABLE_FULL;
	hash = hash_of(&made.ends, settings->flow_seed);
	settle_ahead(hash, made.ends.saddr, settings->flow_seed);
	return enter_flow(&made, hash, request->now_ms, request->least);
}

/* Remove the flow of the same ends. Returns: whether there was one. */
SEC("syscall")
int remove_flow(struct flow_request *request)
{
	struct five_tuple ends = request->flow.ends;
	struct settings *settings = get_settings();
	struct table *table = get_table();

	return settings && table ? remove_from(table, &ends, settings->flow_seed) : false;
}
