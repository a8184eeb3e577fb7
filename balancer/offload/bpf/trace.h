/* What is decided, told to who asks by `balancer trace`.
 *
 * The program that usually has the packets is loaded with is_traced false, and the verifier prunes
 * all of this. While somebody traces, one with it stands in its place, on the same maps; when until_ms
 * is over, that one tells nothing any more, whoever has forgotten it. What goes up is told by the
 * portable engine, which decides.
 *
 * Read by: balancer/offload/tracing.py, balancer/trace/event.py
 */
#pragma once

#include <stddef.h>

#include "maps.h"

#define TENTH_NS 100000000

/* Let the verifier see a length of 1 to SNAP_MAX, in the way that Linux 6.1 understands. */
#define bind_snap(len) asm volatile("%0 += -1\n%0 &= 2047\n%0 += 1" : "+r"(len))

/* What is asked for; written by the daemon.
 *
 * network, mask: of sources. until_ms: of the program's clock. most: in a tenth of a second.
 * reasons: whether each is wanted.
 */
struct trace_wish {
	__be32 network;
	__be32 mask;
	__u64 until_ms;
	__u32 most;
	__u8 reasons[REASONS];
};

/* told: in the current tenth of a second, or lost. lost: in all, for there were too many, or nobody
 * read them.
 */
struct trace_count {
	__u64 tenth;
	__u64 told;
	__u64 lost;
};

/* place: of the backend; 0: none. time_ns: since the boot. octets: of the packet as it came, from the
 * IP header on.
 */
struct decision {
	__u64 time_ns;
	__u32 place;
	__u32 reason;
	__u32 snapped_len;
	__u32 padding;
	__u8 octets[SNAP_MAX];
};

SHARE_TYPE(decision, struct decision);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trace_wish);
} trace_wishes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trace_count);
} trace_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct decision);
} trace_drafts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_OCTETS);
} decisions SEC(".maps");

static __always_inline struct trace_wish *get_wish(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&trace_wishes, &zero);
}

static __always_inline struct trace_count *get_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&trace_counts, &zero);
}

static __always_inline struct decision *get_draft(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&trace_drafts, &zero);
}

/* Note why a packet is sent or dropped. place: of the backend that it is sent to; 0: to none. */
static __always_inline void tell_inline(__u32 reason, __u32 place)
{
	struct decision *draft;

	if (in_test)
		last_reason = reason;
	if (!is_traced)
		return;
	draft = get_draft();
	if (draft) {
		draft->reason = reason;
		draft->place = place;
	}
}

/* Not inlined where it is called from, whose stack is short. */
static __noinline int tell(__u32 reason, __u32 place)
{
	tell_inline(reason, place);
	return 0;
}

static __always_inline void note_sent(__u32 reason, __u32 place)
{
	count(reason);
	if (is_watched)
		tell(reason, place);
}

static __always_inline void note(__u32 reason)
{
	note_sent(reason, 0);
}

/* Note a packet as it comes, if one like it is asked for. */
static __noinline int begin_trace(struct xdp_md *ctx)
{
	struct settings *settings = get_settings();
	struct decision *draft = get_draft();
	struct trace_wish *wish = get_wish();
	struct iphdr *ip;
	__be16 type;
	__u32 len;

	if (!draft || !wish || !settings)
		return 0;
	draft->snapped_len = draft->reason = draft->place = 0;
	if (clock_ms(settings) >= wish->until_ms ||
	    bpf_xdp_load_bytes(ctx, offsetof(struct ethhdr, h_proto), &type, sizeof(type)) ||
	    family_of(type) != FAMILY_IPV4 ||
	    bpf_xdp_load_bytes(ctx, sizeof(struct ethhdr), draft->octets, sizeof(*ip)))
		return 0;
	ip = (struct iphdr *)draft->octets;
	if ((ip->saddr & wish->mask) != wish->network)
		return 0;
	len = bpf_ntohs(ip->tot_len);
	if (len < sizeof(*ip))
		return 0;
	if (len > bpf_xdp_get_buff_len(ctx) - sizeof(struct ethhdr))
		len = bpf_xdp_get_buff_len(ctx) - sizeof(struct ethhdr);
	if (len > SNAP_MAX)
		len = SNAP_MAX;
	bind_snap(len);
	if (!bpf_xdp_load_bytes(ctx, sizeof(struct ethhdr), draft->octets, len))
		draft->snapped_len = len;
	return 0;
}

/* Tell what was decided about the packet that was noted, unless it goes up or is not ours. */
static __noinline int end_trace(int verdict)
{
	struct decision *draft = get_draft();
	struct trace_count *count = get_count();
	struct trace_wish *wish = get_wish();
	__u32 reason, len;
	__u64 tenth;

	if (!draft || !wish || !count || !draft->snapped_len || verdict == XDP_PASS)
		return 0;
	reason = draft->reason;
	if (reason >= REASONS || !wish->reasons[reason])
		return 0;
	draft->time_ns = bpf_ktime_get_boot_ns();
	tenth = draft->time_ns / TENTH_NS;
	if (count->tenth != tenth) {
		count->tenth = tenth;
		count->told = 0;
	}
	len = draft->snapped_len;
	bind_snap(len);
	if (__sync_fetch_and_add(&count->told, 1) >= wish->most ||
	    bpf_ringbuf_output(&decisions, draft, offsetof(struct decision, octets) + len, 0))
		__sync_fetch_and_add(&count->lost, 1);
	return 0;
}
