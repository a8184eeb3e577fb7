/* A flow's life: what its packets say of it, which is a hint at most.
 *
 * Twin: balancer/flows.py
 */
#pragma once

#include "durations.h"
#include "flows.h"

/* The state after a packet of the flow. Twin: balancer/flows.py:after */
static __always_inline __u8 state_after(const struct flow *flow, const struct segment *segment)
{
	__u8 state = state_of(flow);
	bool is_bare = flow->tag.state & BARE;

	if (state == TAKEN_OVER)
		return state;
	if (segment->flags & (RST | FIN))
		return is_bare ? DOUBTED : segment->flags & RST ? RESET : HALF_CLOSED;
	if (payload_len(segment))
		return state == NEW && segment->seq - 1 == flow->client_isn ? NEW : OPEN;
	if (state == HALF_CLOSED || (state == DOUBTED && segment->seq == flow->number))
		return state;
	return OPEN;
}

/* Whether a segment says for the first time that nobody has answered the flow's handoff.
 *
 * Twin: balancer/flows.py:BackendFlow.is_unanswered
 */
static __always_inline bool is_unanswered(const struct flow *flow, const struct segment *segment)
{
	return (flow->tag.state & (STATE_MASK | REPEATED)) == NEW && payload_len(segment) &&
	       segment->seq - 1 == flow->client_isn && !(segment->flags & (RST | FIN)) &&
	       (!segment->has_timestamps || segment->tsecr <= T0_MASK);
}

/* Count a handoff that nobody has answered; whoever marks its flow does. */
static __always_inline void note_unanswered(struct flow *flow)
{
	union tag before = tag_of(flow), after = before;
	__u32 place = place_of(before.service, before.backend);
	struct traffic *sent = bpf_map_lookup_elem(&traffic, &place);

	after.state |= REPEATED;
	if (sent && before.backend && !(before.state & REPEATED) && change_tag(flow, before, after))
		sent->unanswered++;
}

/* Note a packet that may change the flow. Not inlined: most of them change nothing. */
static __noinline int live_on(struct flow *flow, const struct segment *segment, __u64 now_ms)
{
	__u8 state = state_after(flow, segment);
	bool ends = segment->flags & (RST | FIN);

	if (state_of(flow) == NEW && state == OPEN && !payload_len(segment))
		note_first_ack(flow->tag.service, flow->tag.backend, age_ms(flow, now_ms));
	if (is_unanswered(flow, segment))
		note_unanswered(flow);
	if (ends && (flow->tag.state & (BARE | SYN_SEEN)) == BARE)
		flow->number = segment->seq + payload_len(segment) + !!(segment->flags & FIN);
	if (ends || state != state_of(flow)) {
		set_state(flow, state);
		flow->seen_ms = now_ms;
	} else if ((__s32)((__u32)now_ms - flow->seen_ms) >= SEEN_MS) {
		flow->seen_ms = now_ms;
	}
	return 0;
}

/* Whether a segment may be another connection's, so that its cookie need be looked at.
 *
 * Twin: balancer/flows.py:BackendFlow.may_give_way
 */
static __always_inline bool may_give_way(const struct flow *flow, const struct segment *segment,
					 __u64 now_ms)
{
	__u8 bits = flow->tag.state, state = bits & STATE_MASK;
	bool is_closing = state >= DOUBTED && state <= RESET;

	if (segment->has_timestamps || state == TAKEN_OVER)
		return true;
	if (bits & SYN_SEEN && (!(bits & BARE) || flow->number == segment->seq - 1))
		return true;
	return (__s32)((__u32)now_ms - flow->seen_ms) >= (is_closing ? QUIET_MS : REUSE_MS);
}

/* A SYN without timestamps has come for a flow's ports, if there is one. */
static __noinline int note_syn(const struct segment *syn)
{
	const struct settings *settings = get_settings();
	union tag before, after;
	struct flow *flow;

	flow = settings ? look_up(&syn->five_tuple,
				  hash_of(&syn->five_tuple, settings->flow_seed)) : NULL;
	if (!flow)
		return 0;
	before = after = tag_of(flow);
	if (before.state & BARE)
		flow->number = syn->seq;
	after.state |= SYN_SEEN;
	if (before.backend)
		change_tag(flow, before, after);
	return 0;
}
