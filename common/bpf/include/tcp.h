/* A TCP segment, whatever the family of the packet that brings it: a view, in host byte order.
 *
 * Twin: common/wire/tcp.py:Segment
 */
#pragma once

#include <linux/in.h>
#include <linux/tcp.h>

#include "common/bpf/include/checksum.h"
#include "common/bpf/include/constants.h"
#include "common/bpf/include/packet.h"

#define HEADERS_LEN (sizeof(struct iphdr) + sizeof(struct tcphdr))
#define MAX_OPTIONS_LEN 40
/* How common stacks lay them out: NOP, NOP, then the option; SACK's length is in the last octet. */
#define USUAL_TIMESTAMPS 0x0101080a
#define USUAL_SACK 0x01010500

/* As on the wire. */
struct five_tuple {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
};

/* payload_off: from the network header on, as packet.len. flags: FIN..CWR, as on the wire.
 * tsecr: of timestamps that a program has looked for.
 */
struct segment {
	struct packet packet;
	struct five_tuple five_tuple;
	__u32 payload_off;
	__u32 seq;
	__u32 ack;
	__u32 tsecr;
	__u8 flags;
	bool has_timestamps;
};

static __always_inline __u32 payload_len(const struct segment *segment)
{
	return segment->packet.len - segment->payload_off;
}

/* Read the TCP header after a network header that segment->packet tells of; addresses are the
 * caller's to say. Returns: it, or NULL if it is cut short or has bounds that do not hold.
 */
static __always_inline struct tcphdr *read_tcp(struct cursor *cursor, struct segment *segment)
{
	struct tcphdr *tcp = cursor->at;

	if ((void *)(tcp + 1) > cursor->end || segment->packet.protocol != IPPROTO_TCP)
		return NULL;
	segment->payload_off = segment->packet.l4_off + tcp->doff * 4;
	segment->five_tuple.sport = tcp->source;
	segment->five_tuple.dport = tcp->dest;
	segment->seq = bpf_ntohl(tcp->seq);
	segment->ack = bpf_ntohl(tcp->ack_seq);
	segment->flags = ((__u8 *)tcp)[13];
	cursor->at = tcp + 1;
	return tcp->doff >= 5 && segment->payload_off <= segment->packet.len ? tcp : NULL;
}

/* Read an IPv4 packet's headers up to TCP's. Returns: TCP's, or NULL where they are unusual. */
static __always_inline struct tcphdr *read_segment(struct cursor *cursor, struct segment *segment)
{
	struct iphdr *ip = read_ipv4(cursor, &segment->packet);

	if (!ip)
		return NULL;
	segment->five_tuple.saddr = ip->saddr;
	segment->five_tuple.daddr = ip->daddr;
	return read_tcp(cursor, segment);
}

/* Whether the checksum may be one that others have yet to finish: of the pseudo-header alone.
 *
 * Such segments come from hosts on the same machine, and from interfaces that coalesce. No change
 * can be patched into those; going up completes them. One finished checksum of 65536 looks alike.
 */
static __always_inline bool may_be_unfinished(const struct segment *segment,
					      const struct tcphdr *tcp)
{
	__u16 len = segment->packet.len - segment->packet.l4_off;
	__u64 sum = (__u64)segment->five_tuple.saddr + segment->five_tuple.daddr +
		    bpf_htons(IPPROTO_TCP) + bpf_htons(len);

	return folded(sum) == tcp->check;
}
