/* A packet on its way to a backend: destination, DSCP, TTL, an echo that names the backend.
 *
 * Twin: balancer/modes/split/mode.py:_to_backend
 */
#pragma once

#include "takeover.h"

/* Send a segment to a backend. shift: for echoes of the SYN-ACK's TSval. client_isn: the segment
 * that comes right after it also proves whom it is for.
 *
 * Nothing is changed unless all can be: what cannot leave here goes up unchanged.
 */
static __always_inline int forward(struct xdp_md *ctx, const struct segment *segment,
				   const struct backend *backend, __u32 place, __u32 shift,
				   __u32 client_isn, __u32 reason)
{
	struct iphdr *ip = ip_at(ctx, segment->packet.off, HEADERS_LEN);
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct traffic *sent;
	__u64 changes;

	if (!ip || (void *)(eth + 1) > (void *)(long)ctx->data_end || !backend->index ||
	    segment->packet.len > backend->mtu)
		return XDP_PASS;
	changes = changed(0, ip->daddr, backend->address);
	if (shift && segment->has_timestamps && segment->tsecr && segment->tsecr <= T0_MASK) {
		struct iphdr *whole = ip_at(ctx, segment->packet.off, HEADERS_LEN + 12);
		__be32 *tsecr = (void *)whole + HEADERS_LEN + 8, named;

		if (!whole)
			return XDP_PASS;
		shift += segment->tsecr;
		named = bpf_htonl(segment->seq - 1 == client_isn ? shift : stripped(shift));
		changes = changed(changes, *tsecr, named);
		*tsecr = named;
	}
	tcp->check = patched(tcp->check, changes);
	rewrite_ipv4(ip, backend->address, backend->dscp << 2 | (ip->tos & 3));
	__builtin_memcpy(eth->h_dest, backend->destination, ETH_ALEN);
	__builtin_memcpy(eth->h_source, backend->source, ETH_ALEN);
	sent = bpf_map_lookup_elem(&traffic, &place);
	if (sent) {
		sent->packets++;
		sent->octets += segment->packet.len;
		sent->handoffs += reason == REASON_HANDOFF;
	}
	note_sent(reason, place);
	return backend->is_here ? XDP_TX : bpf_redirect(backend->index, 0);
}
