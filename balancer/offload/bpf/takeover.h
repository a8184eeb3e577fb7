/* Timestamps that name the backend, so that any balancer can take over any flow.
 *
 * Twin: balancer/modes/split/takeover.py
 */
#pragma once

#include "handshake.h"

/* What to add to the client's echoes of T0 so that they name the backend, and prove it.
 *
 * start: the backend's id, shifted. bridge: its address.
 */
static __always_inline __u32 ts_shift(__u32 start, __be32 bridge, __u64 hash, __u32 tsecr,
				      __u64 now_ms)
{
	__u32 round_trip_ms = ((__u32)now_ms - tsecr) & CLOCK_MASK;

	if (round_trip_ms < MIN_ROUND_TRIP_MS)
		round_trip_ms = MIN_ROUND_TRIP_MS;
	if (round_trip_ms > MAX_ROUND_TRIP_MS)
		round_trip_ms = MAX_ROUND_TRIP_MS;
	return (start | handoff_mac(hash, bridge) | round_trip_ms) - tsecr;
}

/* Whether a flow of this age can echo `tsecr` although it began at `start`. */
static __always_inline bool may_have_wrapped(__u32 start, __u32 tsecr, __u64 age_ms)
{
	return (__u32)(tsecr - start) <= age_ms + WRAP_SLACK_MS;
}

enum standing { LIMITED, STRANGER, VOUCHED };

/* Twin: balancer/modes/split/takeover.py:RateLimit. allowance: in thousandths of a packet. */
struct rate_limit {
	__u64 allowance;
	__u64 last_ms;
};

/* The latest packet of a flow that the table does not know. tag: of its hash. packets: 0 where
 * there is none.
 *
 * Twin: balancer/modes/split/takeover.py:Candidate
 */
struct candidate {
	__u32 tag;
	__u32 seq;
	__u32 ack;
	__u32 tsecr;
	__u32 seen_ms;
	__u8 id;
	__u8 packets;
	__u8 padding[2];
};

/* The two places that a flow may have. */
struct candidate_pair {
	struct candidate places[2];
};

enum { LIMIT_OVERALL, LIMIT_AGAIN, LIMITS_OF_PREFIXES };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LIMITS_OF_PREFIXES + PREFIXES);
	__type(key, __u32);
	__type(value, struct rate_limit);
} takeover_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CANDIDATES / 2);
	__type(key, __u32);
	__type(value, struct candidate_pair);
} candidates SEC(".maps");

/* Whether one more packet may pass. Not exact where CPUs race, which is fine. */
static __always_inline bool allows(__u32 number, __u64 rate, __u64 now_ms)
{
	struct rate_limit *limit = bpf_map_lookup_elem(&takeover_limits, &number);
	__u64 most = rate * 1000;

	if (!limit)
		return false;
	if (now_ms > limit->last_ms) {
		__u64 elapsed_ms = now_ms - limit->last_ms;

		limit->allowance = elapsed_ms > 1000 ? most : limit->allowance + elapsed_ms * rate;
		if (limit->allowance > most)
			limit->allowance = most;
	}
	limit->last_ms = now_ms;
	if (limit->allowance < 1000)
		return false;
	limit->allowance -= 1000;
	return true;
}

/* Whether a step of a number is back, but not far. */
static __always_inline bool is_late(__u32 step)
{
	return step > -(__u32)REACH;
}

static __always_inline bool is_of_candidate(const struct candidate *last, __u32 tag, __u8 id)
{
	return last->packets && last->tag == tag && last->id == id;
}

static __always_inline bool is_kept(const struct candidate *last, __u64 now_ms)
{
	return last->packets > 1 && (__u32)now_ms - last->seen_ms < KEPT_MS;
}

/* One time in four, by numbers that differ from one packet of a flow to the next.
 *
 * Twin: balancer/modes/split/takeover.py:_takes_the_younger
 */
static __always_inline bool takes_the_younger(const struct segment *segment, __u64 now_ms)
{
	__u32 sum = segment->seq + segment->ack + segment->tsecr + (__u32)now_ms;

	return sum * (__u32)SPREAD >> 30 == 0;
}

/* Where a flow is, or of its two places the one that can be had, if any can. */
static __always_inline struct candidate *place_in(struct candidate_pair *pair,
						  const struct segment *segment, __u32 tag, __u8 id,
						  __u64 now_ms)
{
	struct candidate *first = &pair->places[0], *second = &pair->places[1];
	bool first_is_older;

	if (is_of_candidate(first, tag, id))
		return first;
	if (is_of_candidate(second, tag, id))
		return second;
	if (!first->packets || !second->packets)
		return first->packets ? second : first;
	if (is_kept(first, now_ms))
		return is_kept(second, now_ms) ? NULL : second;
	if (is_kept(second, now_ms))
		return first;
	first_is_older = !is_after(first->seen_ms, second->seen_ms);
	return first_is_older != takes_the_younger(segment, now_ms) ? first : second;
}

/* Note a packet. Returns: how many have gone on, this one among them; 1 for a stranger's. */
static __always_inline __u8 note_candidate(struct candidate *last, const struct segment *segment,
					   __u32 tag, __u8 id, __u64 now_ms)
{
	__u32 seq = segment->seq - last->seq, ack = segment->ack - last->ack,
	      tsecr = segment->tsecr - last->tsecr;
	__u8 packets = 1;

	if (is_of_candidate(last, tag, id)) {
		if ((seq < REACH || is_late(seq)) && (ack < REACH || is_late(ack)) &&
		    (tsecr < REACH || is_late(tsecr))) {
			if (!(seq | ack | tsecr) || is_late(seq) || is_late(ack) || is_late(tsecr))
				return last->packets; /* a copy, or late: says nothing */
			packets = last->packets < VOUCHED_COUNT ? last->packets + 1
								: VOUCHED_COUNT;
		} else if (is_kept(last, now_ms)) {
			return 1;
		}
	}
	*last = (struct candidate){
		.tag = tag, .seq = segment->seq, .ack = segment->ack, .tsecr = segment->tsecr,
		.seen_ms = now_ms, .id = id, .packets = packets,
	};
	return packets;
}

/* What speaks for a packet that names a backend, of a flow that the table does not know.
 *
 * Global, so that it is verified once.
 * Twin: balancer/modes/split/takeover.py:Takeovers.judge
 */
__noinline int judge(const struct segment *segment, __u32 id, __u64 now_ms)
{
	const struct settings *settings = get_settings();
	struct candidate_pair *pair;
	struct candidate *last;
	__u32 place, prefix;
	__u64 hash;
	__u8 packets = 1;

	if (!segment || !settings)
		return LIMITED;
	hash = hash_of(&segment->five_tuple, settings->flow_seed);
	place = hash % (CANDIDATES / 2);
	pair = bpf_map_lookup_elem(&candidates, &place);
	last = pair ? place_in(pair, segment, hash >> 32, id, now_ms) : NULL;
	if (last)
		packets = note_candidate(last, segment, hash >> 32, id, now_ms);
	if (packets >= VOUCHED_COUNT)
		return VOUCHED;
	if (packets > 1)
		return allows(LIMIT_AGAIN, settings->takeover_rate, now_ms) ? STRANGER : LIMITED;
	prefix = bpf_ntohl(segment->five_tuple.saddr) >> (32 - 8 * PREFIX_LEN);
	prefix = (prefix ^ settings->flow_seed) * 0x9e3779b97f4a7c15ULL >> 32;
	return allows(LIMITS_OF_PREFIXES + prefix % PREFIXES,
		      (settings->takeover_rate + PREFIX_SHARE - 1) / PREFIX_SHARE, now_ms) &&
			       allows(LIMIT_OVERALL, settings->takeover_rate, now_ms)
		       ? STRANGER : LIMITED;
}

/* Enter a flow that another balancer began, if there is room. It is as old as its clock. */
static __noinline int take_over(const struct segment *segment, __u32 service, __u32 id,
				__u64 now_ms)
{
	const struct settings *settings = get_settings();
	struct flow made = {
		.ends = segment->five_tuple, .client_isn = segment->seq - 1, .seen_ms = now_ms,
		.tag = {.service = service, .backend = id, .state = TAKEN_OVER},
	};

	if (!settings)
		return TABLE_FULL;
	set_created(&made, now_ms - (__u32)(segment->tsecr - (id << (settings->id_shift & 31))));
	return enter_flow(&made, hash_of(&made.ends, settings->flow_seed), now_ms, TAKEN_OVER);
}
