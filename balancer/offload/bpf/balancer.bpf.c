/* The balancer at XDP: decides what can be decided from one packet and its flow.
 *
 * balancer/datapath.py is the specification; the tests come in its order. XDP_PASS leaves a packet
 * to the portable engine, which decides with the same tables: whatever is unusual goes up.
 */
#include "flows.h"
#include "forward.h"
#include "request.h"

#include "common/bpf/include/allowance.h"

/* Packets of unknown flows that go up in a period: second segments of long requests are such, too,
 * until the first one is known to be held.
 */
#define MAX_UNKNOWN 10000

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* A flow that has not been idle for too long. */
static __always_inline struct flow *find_flow(const struct settings *settings,
					      const struct segment *segment, __u64 hash,
					      __u64 now_ms)
{
	struct flow *flow = look_up(&segment->five_tuple, hash);

	return flow && !is_idle(settings, flow, now_ms) ? flow : NULL;
}

/* Send a segment to its flow's backend, and note what it does to the flow. */
static __always_inline int forward_flow(struct xdp_md *ctx, const struct segment *segment,
					struct flow *flow, const struct backend *backend,
					__u64 now_ms)
{
	__u32 place = place_of(flow->tag.service, flow->tag.backend);
	int verdict;

	if (!backend || flow->tag.state & GOES_UP)
		return XDP_PASS;
	verdict = forward(ctx, segment, backend, place, flow->ts_shift,
			  REASON_FORWARDED);
	if (verdict == XDP_PASS)
		return verdict;
	if (segment->flags & RST) {
		set_state(flow, RESET);
		flow->seen_ms = now_ms;
	} else if (segment->flags & FIN && state_of(flow) == OPEN) {
		set_state(flow, HALF_CLOSED);
		flow->seen_ms = now_ms;
	} else if ((__s32)((__u32)now_ms - flow->seen_ms) >= SEEN_MS) {
		flow->seen_ms = now_ms;
	}
	return verdict;
}

/* A segment whose echo names a backend. */
static __always_inline int on_named(struct xdp_md *ctx, const struct settings *settings,
				    __u32 service, const struct segment *segment,
				    struct flow *flow, __u32 id, struct backend *named,
				    __u64 now_ms)
{
	if (flow) {
		if (flow->tag.backend != id) {
			__u32 start = (__u32)flow->tag.backend << (settings->id_shift & 31);

			if (!may_have_wrapped(start, segment->tsecr, age_ms(flow, now_ms)))
				return XDP_PASS; /* the entry is stale, and goes */
			named = find_backend(service, flow->tag.backend);
		}
		if (flow->ts_shift && !(flow->tag.state & GOES_UP))
			flow->ts_shift = 0; /* no more echoes of the SYN-ACK's TSval */
		return forward_flow(ctx, segment, flow, named, now_ms);
	}
	if (!named->index || segment->packet.len > named->mtu)
		return XDP_PASS;
	if (!takeover_allowed(settings, now_ms)) {
		note(REASON_TAKEOVER_LIMITED);
		return XDP_DROP;
	}
	return forward(ctx, segment, named, place_of(service, id), 0,
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

/* The first payload after a handshake of ours: choose, enter the flow, hand it over. */
static __always_inline int on_first_payload(struct xdp_md *ctx, const struct settings *settings,
					    __u32 service, const struct segment *segment,
					    __u64 hash, __u64 now_ms)
{
	struct flow made;
	struct backend *backend;
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
		.tag = {.service = service, .backend = id},
	};
	set_created(&made, now_ms);
	if (segment->has_timestamps)
		made.ts_shift = ts_shift((__u32)id << (settings->id_shift & 31), segment->tsecr,
					 unix_ms(settings, now_ms));
	if (enter_flow(&made, hash, now_ms, IDLE) != ENTERED)
		return XDP_PASS; /* the table is full: the daemon makes room */
	return forward(ctx, segment, backend, place_of(service, id),
		       made.ts_shift, REASON_HANDOFF);
}

/* A segment of no flow: it may have overtaken the one that opens it, or wants a reset in time. */
static __always_inline int on_unknown(void)
{
	if (in_test || may_go_up(MAX_UNKNOWN))
		return XDP_PASS;
	note(REASON_UNKNOWN_FLOW);
	return XDP_DROP;
}

/* A segment whose echo, if it has one, names no backend. */
static __always_inline int on_unnamed(struct xdp_md *ctx, const struct settings *settings,
				      __u32 service, const struct segment *segment,
				      struct flow *flow, __u64 hash, __u64 now_ms)
{
	struct backend *backend = flow ? find_backend(service, flow->tag.backend) : NULL;

	if (flow && payload_len(segment) && segment->seq - 1 == flow->client_isn)
		return forward_flow(ctx, segment, flow, backend, now_ms);
	if (held_count && bpf_map_lookup_elem(&held, &segment->five_tuple))
		return XDP_PASS;
	if (follows_cookie(settings, segment, unix_ms(settings, now_ms))) {
		if (payload_len(segment)) {
			int verdict = on_first_payload(ctx, settings, service, segment, hash,
						       now_ms);

			if (flow && verdict == XDP_PASS) /* of an older connection on these ports: */
				send_up(flow); /* the next segment must not follow it */
			return verdict;
		}
		if (segment->flags & (RST | FIN))
			return XDP_PASS;
		note(REASON_HANDSHAKE_ACK);
		return XDP_DROP;
	}
	return flow ? forward_flow(ctx, segment, flow, backend, now_ms)
		    : on_unknown();
}

/* The service of a segment, or NULL. */
static __always_inline struct service *find_service(const struct segment *segment)
{
	struct service_key key = {
		.vip = segment->five_tuple.daddr, .port = segment->five_tuple.dport
	};

	return bpf_map_lookup_elem(&services, &key);
}

static __noinline int on_syn(struct xdp_md *ctx, const struct settings *settings,
				  const struct segment *segment)
{
	struct service *service = find_service(segment);

	if (!service || segment->flags & (ACK | FIN | RST) ||
	    !may_be_answered(&segment->five_tuple))
		return XDP_PASS;
	return answer_syn(ctx, settings, service, segment,
			  unix_ms(settings, clock_ms(settings)));
}

SEC("xdp.frags")
int on_packet(struct xdp_md *ctx)
{
	struct segment segment = {};
	struct settings *settings;
	struct service *service;
	struct backend *named;
	struct flow *flow;
	__u32 id, number;
	__u64 hash, now_ms;

	settings = get_settings();
	if (!settings || !read_frame(ctx, &segment))
		return XDP_PASS;
	if (segment.flags & SYN)
		return on_syn(ctx, settings, &segment);
	now_ms = clock_ms(settings);
	hash = hash_of(&segment.five_tuple, settings->flow_seed);
	flow = find_flow(settings, &segment, hash, now_ms);
	if (flow) { /* most are, and that tells the service, too */
		number = flow->tag.service;
	} else {
		service = find_service(&segment);
		if (!service || !may_be_answered(&segment.five_tuple))
			return XDP_PASS;
		number = service->number;
	}
	if (segment.packet.ttl <= 1 || !read_timestamps(ctx, &segment))
		return XDP_PASS;
	id = segment.has_timestamps && segment.flags & ACK
		     ? segment.tsecr >> (settings->id_shift & 31)
		     : 0;
	named = find_backend(number, id);
	return named ? on_named(ctx, settings, number, &segment, flow, id, named, now_ms)
		     : on_unnamed(ctx, settings, number, &segment, flow, hash, now_ms);
}

/* Not for packets: tells the daemon the kernel's tick. */
SEC("xdp.frags")
int read_tick(struct xdp_md *ctx)
{
	return bpf_jiffies64();
}
