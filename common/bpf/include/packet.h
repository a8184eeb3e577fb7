/* A packet in a frame, read with a cursor: each reader checks bounds, moves on, and says what is next.
 *
 * Families are values: what is after the network header is read alike for all of them. Today there
 * is IPv4; what is unusual there (options, fragments) is left to the portable engine.
 *
 * Twin: common/wire/ipv4.py
 */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "common/bpf/include/checksum.h"

/* at: the next header. end: of the octets at hand. A program makes it from its context, and anew
 * after a helper that may move the packet.
 */
struct cursor {
	void *at;
	void *end;
};

enum family { FAMILY_NONE, FAMILY_IPV4 };

enum { MORE_FRAGMENTS = 0x2000, FRAGMENT_OFFSET = 0x1fff }; /* of iphdr.frag_off */

/* off: where the network header begins in the frame; l4_off: the transport's, from there on.
 * len: from the network header on, without the frame's padding.
 */
struct packet {
	__u32 len;
	__u16 off;
	__u16 l4_off;
	__u8 family; /* enum family */
	__u8 protocol;
	__u8 tos;
	__u8 ttl;
};

/* Of a VLAN's tag. A tagged frame belongs to the VLAN's own interface, where a program may be, too. */
static __always_inline bool is_tag(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

/* Returns: the type of what follows, which may be a tag; 0 if the frame ends before it. */
static __always_inline __be16 read_ethernet(struct cursor *cursor)
{
	struct ethhdr *eth = cursor->at;

	if ((void *)(eth + 1) > cursor->end)
		return 0;
	cursor->at = eth + 1;
	return eth->h_proto;
}

/* The family that an Ethernet type stands for. */
static __always_inline enum family family_of(__be16 type)
{
	return type == bpf_htons(ETH_P_IP) ? FAMILY_IPV4 : FAMILY_NONE;
}

/* Read a header without options, of a packet that is no fragment. Returns: it, or NULL.
 *
 * packet->off is the caller's to say.
 */
static __always_inline struct iphdr *read_ipv4(struct cursor *cursor, struct packet *packet)
{
	struct iphdr *ip = cursor->at;

	if ((void *)(ip + 1) > cursor->end || *(__u8 *)ip != 0x45 ||
	    ip->frag_off & bpf_htons(MORE_FRAGMENTS | FRAGMENT_OFFSET))
		return NULL;
	packet->family = FAMILY_IPV4;
	packet->l4_off = sizeof(*ip);
	packet->len = bpf_ntohs(ip->tot_len);
	packet->protocol = ip->protocol;
	packet->tos = ip->tos;
	packet->ttl = ip->ttl;
	cursor->at = ip + 1;
	return ip;
}

/* A new destination and TOS, one hop more.
 *
 * Twin: common/wire/ipv4.py:Rewrite
 */
static __always_inline void rewrite_ipv4(struct iphdr *ip, __be32 destination, __u8 tos)
{
	__u8 ttl = ip->ttl - 1;
	__u64 changes = changed(0, ip->daddr, destination);

	changes = changed(changes, bpf_htons(ip->tos), bpf_htons(tos));
	changes = changed(changes, bpf_htons(ip->ttl << 8), bpf_htons(ttl << 8));
	ip->check = patched(ip->check, changes);
	ip->daddr = destination;
	ip->tos = tos;
	ip->ttl = ttl;
}
