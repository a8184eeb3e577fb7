/* The key of the first payload, and the backend that it chooses.
 *
 * Twin: balancer/keys/request.py
 */
#pragma once

#include "http.h"
#include "schedule.h"
#include "tls.h"

#define SOURCE_OFF 0 /* where the client's address and port are put in the scratch */

/* The first payload of a flow: `len` octets at `off` in the frame. source, sport: the client's. */
struct request {
	__be32 source;
	__be16 sport;
	__u16 service;
	__u16 off;
	__u16 len;
};

/* Find the key that a spec asks for. end: of the payload. Returns: WHOLE, NO_KEY or NEED_MORE. */
static __always_inline int extract(struct scratch *scratch, const struct key_spec *spec, __u32 end)
{
	struct part part = {SOURCE_OFF, SOURCE_OFF + 4};

	switch (spec->kind) {
	case KEY_NONE:
		return NEED_MORE;
	case KEY_SOURCE:
		return give(scratch, part, WHOLE);
	case KEY_SOURCE_AND_PORT:
		part.end += 2;
		return give(scratch, part, WHOLE);
	case KEY_PAYLOAD:
		part = (struct part){PAYLOAD_OFF, PAYLOAD_OFF + spec->length};
		return give(scratch, part, part.end <= end ? WHOLE : NEED_MORE);
	case KEY_SERVER_NAME:
		return find_name_in_hello(scratch, end);
	default:
		return find_in_request(scratch, spec, end);
	}
}

/* Copy what a key may need of the payload. Returns: how many octets, 0 where it cannot be. */
static __always_inline __u32 load(struct xdp_md *ctx, struct scratch *scratch, __u32 off, __u32 len)
{
	__u32 loaded = len < PAYLOAD_MAX ? len : PAYLOAD_MAX;

	if (!loaded)
		return 0;
	len = loaded;
	/* Linux 6.1 forgets that this is not 0 unless it is said in its own way */
	asm volatile("%0 += -1\n%0 &= 2047\n%0 += 1" : "+r"(len));
	return bpf_xdp_load_bytes(ctx, off, scratch->octets + PAYLOAD_OFF, len) ? 0 : loaded;
}

/* The id of the backend for a first payload, or PASS_UP. */
__noinline int choose_backend(struct xdp_md *ctx, const struct request *request)
{
	struct scratch *scratch = get_scratch();
	struct plan *plan;
	__u32 service, end;
	int result;

	if (!request || !scratch)
		return PASS_UP;
	service = request->service;
	plan = bpf_map_lookup_elem(&plans, &service);
	if (!plan || !plan->scheduler)
		return PASS_UP;
	*(__be32 *)(scratch->octets + SOURCE_OFF) = request->source;
	*(__be16 *)(scratch->octets + SOURCE_OFF + 4) = request->sport;
	end = PAYLOAD_OFF;
	if (plan->key.kind >= KEY_PAYLOAD || plan->fallback.kind >= KEY_PAYLOAD) {
		end += load(ctx, scratch, request->off, request->len);
		if (end == PAYLOAD_OFF)
			return PASS_UP;
	}
	result = extract(scratch, &plan->key, end);
	if (result == NO_KEY)
		result = extract(scratch, &plan->fallback, end);
	if (result == NO_KEY)
		scratch->key = (struct part){SOURCE_OFF, SOURCE_OFF + 4};
	return result == NEED_MORE ? PASS_UP : pick(plan, service, scratch);
}
