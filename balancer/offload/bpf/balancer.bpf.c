/* The balancer at XDP: decides what can be decided from one packet and its flow.
 *
 * balancer/datapath.py is the specification; the tests come in its order. XDP_PASS leaves a packet
 * to the portable engine, which decides with the same tables: whatever is unusual goes up.
 */
#include "flows.h"
#include "forward.h"
#include "life.h"
#include "request.h"
#include "up.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* A flow that has not been idle for too long. */
static __always_inline struct flow *find_flow(const struct settings *settings,
					      const struct segment *segment, __u64 hash,
					      __u64 now_ms)
{
	struct flow *flow = look_up(&segment->five_tuple, hash);

	return flow && !is_idle(settings, flow, now_ms) ? flow : NULL;
}

/* Send a segment to its flow's backend, and note what it does to the flow. shift: as of forward. */
static __always_inline int forward_flow(struct xdp_md *ctx, const struct segment *segment,
					struct flow *flow, const struct backend *backend,
					__u32 shift, __u64 now_ms)
{
	__u32 place = place_of(flow->tag.service, flow->tag.backend);
	int verdict;

	if (!backend || flow->tag.state & GOES_UP)
		return up_from(segment->five_tuple.saddr, UP_FLOW);
	verdict = forward(ctx, segment, backend, place, shift, flow->client_isn,
			  REASON_FORWARDED);
	if (verdict == XDP_PASS)
		return up_from(segment->five_tuple.saddr, backend->index ? UP_FLOW : UP_NO_WAY);
	if (segment->flags & (RST | FIN) || state_of(flow) != OPEN)
		live_on(flow, segment, now_ms);
	else if ((__s32)((__u32)now_ms - flow->seen_ms) >= SEEN_MS)
		flow->seen_ms = now_ms;
	return verdict;
}

/* For echoes of the SYN-ACK's TSval; none are left when the server's clock has wrapped. */
static __always_inline __u32 shift_of(const struct settings *settings, const struct flow *flow,
				      __u64 now_ms)
{
	if (flow->tag.state & BARE || age_ms(flow, now_ms) >> (settings->id_shift & 31))
		return 0;
	return flow->number;
}

/* A segment whose echo names a backend, of a flow that has timestamps or is not in the table. */
static __always_inline int on_named(struct xdp_md *ctx, const struct settings *settings,
				    __u32 service, const struct segment *segment,
				    struct flow *flow, __u32 id, struct backend *named,
				    __u64 now_ms)
{
	struct backend *own = named;
	int standing;

	if (flow && flow->tag.backend != id) {
		__u32 start = (__u32)flow->tag.backend << (settings->id_shift & 31);

		own = may_have_wrapped(start, segment->tsecr, age_ms(flow, now_ms))
			      ? find_backend(service, flow->tag.backend) : NULL;
	}
	if (flow && own)
		return forward_flow(ctx, segment, flow, own, 0, now_ms);
	if (!named->index || segment->packet.len > named->mtu)
		return up(UP_TAKEOVER);
	standing = judge(segment, id, now_ms);
	if (standing == LIMITED) {
		note(REASON_TAKEOVER_LIMITED);
		return XDP_DROP;
	}
	if (standing == VOUCHED && !flow)
		take_over(segment, service, id, now_ms);
	return forward(ctx, segment, named, place_of(service, id), 0, 0,
		       REASON_TAKEOVER);
}

/* The id of the backend that a first payload chooses, or PASS_UP. */
static __always_inline int choose(struct xdp_md *ctx, __u32 service, const struct segment *segment)
{
	struct request request = {
		.off = segment->packet.off + segment->payload_off, .len = payload_len(segment),
		.service = service, .source = segment->five_tuple.saddr,
		.sport = segment->five_tuple.sport,
	};

	return choose_backend(ctx, &request);
}

/* The first payload after a handshake of ours: choose, enter the flow, hand it over.
 *
 * proven: the handshake's hash.
 */
static __always_inline int on_first_payload(struct xdp_md *ctx, const struct settings *settings,
					    __u32 service, const struct segment *segment,
					    __u64 proven, __u64 hash, __u64 now_ms)
{
	struct flow made;
	struct backend *backend;
	__u32 shift = 0;
	int id;

	if (segment->flags & (RST | FIN))
		return XDP_PASS;
	id = choose(ctx, service, segment);
	if (id <= 0)
		return XDP_PASS;
	backend = find_backend(service, id);
	if (!backend || !backend->index || segment->packet.len > backend->mtu)
		return XDP_PASS;
	made = (struct flow){
		.ends = segment->five_tuple, .client_isn = segment->seq - 1, .seen_ms = now_ms,
		.tag = {.service = service, .backend = id, .state = NEW},
	};
	set_created(&made, now_ms);
	if (segment->has_timestamps)
		made.number = shift = ts_shift((__u32)id << (settings->id_shift & 31),
					       backend->address, proven, segment->tsecr,
					       unix_ms(settings, now_ms));
	else
		made.tag.state |= BARE;
	if (enter_flow(&made, hash, now_ms, NEW) != ENTERED)
		return XDP_PASS; /* the table is full: the daemon makes room */
	if (segment->has_timestamps)
		note_handshake(service, segment->tsecr, unix_ms(settings, now_ms));
	return forward(ctx, segment, backend, place_of(service, id), shift, made.client_isn,
		       REASON_HANDOFF);
}

/* A segment whose echo, if it has one, names no backend. */
static __always_inline int on_unnamed(struct xdp_md *ctx, const struct settings *settings,
				      __u32 service, const struct segment *segment,
				      struct flow *flow, __u64 hash, __u64 now_ms)
{
	struct backend *backend = flow ? find_backend(service, flow->tag.backend) : NULL;
	bool is_asked = !flow || may_give_way(flow, segment, now_ms);
	bool is_guess = is_asked && payload_len(segment) && !segment->has_timestamps;
	__u32 shift = flow ? shift_of(settings, flow, now_ms) : 0;
	__u64 proven = 0;

	if (flow && payload_len(segment) && segment->seq - 1 == flow->client_isn &&
	    state_of(flow) != TAKEN_OVER)
		return forward_flow(ctx, segment, flow, backend, shift, now_ms);
	if (held_count && bpf_map_lookup_elem(&held, &segment->five_tuple))
		return up_from(segment->five_tuple.saddr, UP_HELD);
	if (is_guess && !flow && is_ahead(ahead_at(hash), hash))
		return up_from(segment->five_tuple.saddr, UP_HELD); /* it is none */
	if (is_guess && !may_guess(service, now_ms)) {
		if (flow && !(flow->tag.state & SYN_SEEN))
			return forward_flow(ctx, segment, flow, backend, shift, now_ms);
		note(REASON_GUESSES_LIMITED);
		return XDP_DROP;
	}
	if (is_asked)
		proven = follows_cookie(settings, segment, unix_ms(settings, now_ms));
	if (proven && echoes_t0(settings, segment, proven)) {
		if (payload_len(segment)) {
			int verdict = on_first_payload(ctx, settings, service, segment, proven,
						       hash, now_ms);

			if (verdict != XDP_PASS)
				return verdict;
			if (flow) /* of an older connection on these ports: */
				send_up(flow); /* the next segment must not follow it */
			return first_up(settings, segment, hash);
		}
		if (segment->flags & (RST | FIN))
			return up_from(segment->five_tuple.saddr, UP_FIRST);
		note(REASON_HANDSHAKE_ACK);
		return XDP_DROP;
	}
	if (is_guess && !proven)
		note_guess(service, now_ms);
	return flow ? forward_flow(ctx, segment, flow, backend, shift, now_ms)
		    : unknown_up(segment, hash);
}

static __noinline int on_syn(struct xdp_md *ctx, const struct settings *settings,
				  const struct segment *segment)
{
	struct service *service = find_service(segment);
	int verdict;

	if (!service)
		return XDP_PASS;
	if (segment->flags & (ACK | FIN | RST))
		return drop(REASON_BAD_FLAGS);
	if (!may_be_answered(&segment->five_tuple))
		return drop(REASON_BAD_SOURCE);
	verdict = answer_syn(ctx, settings, service, segment,
			     unix_ms(settings, clock_ms(settings)));
	return verdict == XDP_PASS ? up(UP_ODD) : verdict;
}

static __always_inline int decide(struct xdp_md *ctx)
{
	struct segment segment = {};
	struct settings *settings;
	struct service *service;
	struct backend *named;
	struct flow *flow;
	__u32 id, number;
	__u64 hash, now_ms;

	settings = get_settings();
	if (!settings || is_over())
		return XDP_PASS;
	if (!read_frame(ctx, &segment))
		return on_unusual(ctx, settings);
	if (segment.flags & SYN) {
		int verdict = on_syn(ctx, settings, &segment);

		if (verdict == ANSWERED_BARE) {
			note_syn(&segment);
			return XDP_TX;
		}
		return verdict;
	}
	now_ms = clock_ms(settings);
	hash = hash_of(&segment.five_tuple, settings->flow_seed);
	flow = find_flow(settings, &segment, hash, now_ms);
	if (flow) { /* most are, and that tells the service, too */
		number = flow->tag.service;
	} else {
		service = find_service(&segment);
		if (!service)
			return XDP_PASS;
		if (!may_be_answered(&segment.five_tuple))
			return drop(REASON_BAD_SOURCE);
		number = service->number;
	}
	if (segment.packet.ttl <= 1)
		return drop(REASON_TTL_EXPIRED);
	if (!read_timestamps(ctx, &segment))
		return flow ? up_from(segment.five_tuple.saddr, UP_FLOW)
			    : odd_up(settings, &segment, hash);
	id = segment.has_timestamps && segment.flags & ACK
		     ? segment.tsecr >> (settings->id_shift & 31)
		     : 0;
	named = find_backend(number, id);
	/* a first payload of no flow has seen no server, whatever it echoes */
	if (named && !flow && payload_len(&segment) &&
	    follows_cookie(settings, &segment, unix_ms(settings, now_ms)))
		named = NULL;
	if (named && flow && flow->tag.backend != id && flow->tag.state & BARE)
		named = NULL; /* the flow's packets echo nothing */
	return named ? on_named(ctx, settings, number, &segment, flow, id, named, now_ms)
		     : on_unnamed(ctx, settings, number, &segment, flow, hash, now_ms);
}

SEC("xdp.frags")
int on_packet(struct xdp_md *ctx)
{
	int verdict;

	if (is_traced)
		begin_trace(ctx);
	verdict = decide(ctx);
	if (is_traced)
		end_trace(verdict);
	return verdict;
}

/* Not for packets: tells the daemon the kernel's tick. */
SEC("xdp.frags")
int read_tick(struct xdp_md *ctx)
{
	return bpf_jiffies64();
}
