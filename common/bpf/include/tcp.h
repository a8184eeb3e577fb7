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
enum { MSS_LEN = 4, WSCALE_LEN = 3, SACK_PERMITTED_LEN = 2, TIMESTAMPS_LEN = 10 }; /* all of it */

/* How common stacks lay options out: NOPs, then the option. The word that it begins with; the last
 * octets of some are to be filled in: MSS's value, the window scale's shift, SACK's length.
 */
#define TWO_NOPS (OPTION_NOP << 24 | OPTION_NOP << 16)
#define USUAL_TIMESTAMPS (TWO_NOPS | OPTION_TIMESTAMPS << 8 | TIMESTAMPS_LEN)
#define USUAL_TIMESTAMPS_WORDS 3
#define USUAL_SACK (TWO_NOPS | OPTION_SACK << 8)
#define USUAL_MSS (OPTION_MSS << 24 | MSS_LEN << 16)
#define USUAL_WSCALE (OPTION_NOP << 24 | OPTION_WSCALE << 16 | WSCALE_LEN << 8)
#define USUAL_SACK_PERMITTED (TWO_NOPS | OPTION_SACK_PERMITTED << 8 | SACK_PERMITTED_LEN)
/* The two together, without NOPs. */
#define USUAL_SACK_PERMITTED_TIMESTAMPS                            \
	(OPTION_SACK_PERMITTED << 24 | SACK_PERMITTED_LEN << 16 | \
	 OPTION_TIMESTAMPS << 8 | TIMESTAMPS_LEN)

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
	__u32 seq;
	__u32 ack;
	__u32 tsecr;
	__u16 payload_off;
	__u8 flags;
	bool has_timestamps;
};

/* What the option says (RFC 7323 §3.2). */
struct timestamps {
	bool found;
	__u32 tsval;
	__u32 tsecr;
};

/* Whether a sequence number, or a timestamp, comes after another. */
static __always_inline bool is_after(__u32 number, __u32 other)
{
	return (__s32)(number - other) > 0;
}

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

/* Timestamps where all common stacks have them after the handshake: before all other options.
 *
 * options: what follows the header. end: of the octets at hand. len: of the options, octets.
 */
static __always_inline struct timestamps read_usual_timestamps(const __be32 *options,
							       const void *end, __u32 len)
{
	struct timestamps timestamps = {};

	if (len < USUAL_TIMESTAMPS_WORDS * 4 ||
	    (void *)(options + USUAL_TIMESTAMPS_WORDS) > end ||
	    options[0] != bpf_htonl(USUAL_TIMESTAMPS))
		return timestamps;
	timestamps.found = true;
	timestamps.tsval = bpf_ntohl(options[1]);
	timestamps.tsecr = bpf_ntohl(options[2]);
	return timestamps;
}

/* The sum of a TCP pseudo-header. len: of the segment from its header on, octets. */
static __always_inline __u64 pseudo_sum(__be32 saddr, __be32 daddr, __u16 len)
{
	return (__u64)saddr + daddr + bpf_htons(IPPROTO_TCP) + bpf_htons(len);
}

/* Whether the checksum may be one that others have yet to finish: of the pseudo-header alone.
 *
 * Such segments come from hosts on the same machine, and from interfaces that coalesce. No change
 * can be patched into those; going up completes them. One finished checksum of 65536 looks alike.
 */
static __always_inline bool may_be_unfinished(const struct segment *segment,
					      const struct tcphdr *tcp)
{
	return folded(pseudo_sum(segment->five_tuple.saddr, segment->five_tuple.daddr,
				 segment->packet.len - segment->packet.l4_off)) == tcp->check;
}
