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

/* Whether one more packet may pass on its echo alone. Not exact where CPUs race, which is fine. */
static __always_inline bool takeover_allowed(const struct settings *settings, __u64 now_ms)
{
	__u64 most = settings->takeover_rate * 1000;
	struct rate_limit *limit;
	__u32 zero = 0;

	limit = bpf_map_lookup_elem(&takeover_limit, &zero);
	if (!limit)
		return false;
	if (now_ms > limit->last_ms) {
		__u64 elapsed_ms = now_ms - limit->last_ms;

		limit->allowance = elapsed_ms > 1000 ? most
				   : limit->allowance + elapsed_ms * settings->takeover_rate;
		if (limit->allowance > most)
			limit->allowance = most;
	}
	limit->last_ms = now_ms;
	if (limit->allowance < 1000)
		return false;
	limit->allowance -= 1000;
	return true;
}
