/* The ways up to the portable engine. What is for none of our services passes, whatever it is. */
#pragma once

#include <stddef.h>

#include "flows.h"
#include "handshake.h"

#include "common/bpf/include/icmp.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SERVICES);
	__type(key, __be32);
	__type(value, __u8);
} vips SEC(".maps");

static __always_inline int drop(__u32 reason)
{
	note(reason);
	return XDP_DROP;
}

/* Leave a packet of that class (enum way_up) to the portable engine, or drop it.
 *
 * saddr: of a source that is real, as far as one can know, or 0: then no network has shares.
 */
static __noinline int up_from(__be32 saddr, __u32 way)
{
	const struct settings *settings = get_settings();
	struct network *network = NULL;
	bool may;

	if (saddr && settings)
		network = network_of(saddr, settings->flow_seed);
	may = may_go_up(way, network && has_had_share(network, way));
	if (may)
		return XDP_PASS;
	if (is_watched)
		tell_inline(REASON_LIMITED_FLOW + way, 0); /* a call more would exceed the stack */
	return XDP_DROP;
}

/* The same for what anybody can send. */
static __always_inline int up(__u32 way)
{
	return up_from(0, way);
}

/* A first payload goes up, and more of its flow may come. hash: of its five-tuple. */
static __noinline int first_up(const struct settings *settings, const struct segment *segment,
			       __u64 hash)
{
	__be32 saddr = segment->five_tuple.saddr;
	struct network *network = network_of(saddr, settings->flow_seed);
	__u64 *entry = ahead_at(hash);
	int verdict;

	if (!network || !entry)
		return XDP_DROP;
	verdict = up_from(saddr, note_first(network, entry, hash) ? UP_UNFINISHED : UP_FIRST);
	if (verdict == XDP_PASS) /* of others nothing is held: their rest is a stranger's */
		note_ahead(entry, hash);
	return verdict;
}

/* A segment of no flow: it may have overtaken the one that opens it, or wants a reset in time. */
static __noinline int unknown_up(const struct segment *segment, __u64 hash)
{
	return is_ahead(ahead_at(hash), hash) ? up_from(segment->five_tuple.saddr, UP_HELD)
					      : up(UP_UNKNOWN);
}

/* A segment of no flow with unusual options, or an unusual checksum. */
static __noinline int odd_up(const struct settings *settings, const struct segment *segment,
			     __u64 hash)
{
	if (is_ahead(ahead_at(hash), hash) ||
	    bpf_map_lookup_elem(&held, &segment->five_tuple))
		return up_from(segment->five_tuple.saddr, UP_HELD);
	if (!(segment->flags & SYN) &&
	    follows_cookie(settings, segment, unix_ms(settings, clock_ms(settings))))
		return first_up(settings, segment, hash);
	return up(UP_ODD);
}

/* The service of a segment, or NULL. */
static __always_inline struct service *find_service(const struct segment *segment)
{
	struct service_key key = {
		.vip = segment->five_tuple.daddr, .port = segment->five_tuple.dport
	};

	return bpf_map_lookup_elem(&services, &key);
}

/* A sound segment but for its checksum, which others may have yet to finish, or for its length. */
static __always_inline int on_unfinished(const struct settings *settings,
					 const struct segment *segment)
{
	__u64 hash = hash_of(&segment->five_tuple, settings->flow_seed);

	return look_up(&segment->five_tuple, hash)
		       ? up_from(segment->five_tuple.saddr, UP_FLOW)
		       : odd_up(settings, segment, hash);
}

/* A packet that is no plain segment. Twin: balancer/rules.py:rules, which tell what would go up. */
static __noinline int on_unusual(struct xdp_md *ctx, const struct settings *settings)
{
	struct cursor cursor = cursor_of(ctx);
	struct segment segment = {};
	__u32 l4_off = sizeof(struct ethhdr);
	__be16 fragment;
	struct iphdr *ip;
	bool has_options;
	__be32 vip;
	__u8 type;

	if (family_of(read_ethernet(&cursor)) != FAMILY_IPV4)
		return XDP_PASS;
	ip = cursor.at;
	if ((void *)(ip + 1) > cursor.end)
		return XDP_PASS;
	vip = ip->daddr;
	if (!bpf_map_lookup_elem(&vips, &vip))
		return XDP_PASS;
	fragment = ip->frag_off & bpf_htons(MORE_FRAGMENTS | FRAGMENT_OFFSET);
	has_options = ip->ihl != 5;
	l4_off += ip->ihl * 4;
	if (ip->protocol == IPPROTO_ICMP) {
		if (fragment & bpf_htons(FRAGMENT_OFFSET) ||
		    bpf_xdp_load_bytes(ctx, l4_off, &type, sizeof(type)))
			return XDP_PASS;
		return is_icmp_error(type) ? up(UP_ICMP) : XDP_PASS;
	}
	if (ip->protocol != IPPROTO_TCP)
		return XDP_PASS;
	if (fragment & bpf_htons(FRAGMENT_OFFSET)) /* whose port is in another one */
		return up(UP_IP);
	segment.five_tuple.daddr = vip;
	if (bpf_xdp_load_bytes(ctx, l4_off + offsetof(struct tcphdr, dest),
			       &segment.five_tuple.dport, sizeof(segment.five_tuple.dport)) ||
	    !find_service(&segment))
		return XDP_PASS;
	if (has_options || fragment)
		return up(UP_IP);
	return read_segment(&cursor, &segment) ? on_unfinished(settings, &segment) : up(UP_ODD);
}
