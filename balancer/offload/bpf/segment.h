/* A TCP segment in a frame at XDP.
 *
 * What is not a plain segment (IP options, fragments, bounds that do not hold) is left to the
 * portable engine, which counts it.
 */
#pragma once

#include "trace.h"

static __always_inline struct cursor cursor_of(const struct xdp_md *ctx)
{
	return (struct cursor){(void *)(long)ctx->data, (void *)(long)ctx->data_end};
}

/* The headers, if `len` octets from the IP header on are at hand, else NULL. */
static __always_inline struct iphdr *ip_at(struct xdp_md *ctx, __u32 ip_off, __u32 len)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	void *ip = data + ip_off;

	return ip_off > sizeof(struct ethhdr) || ip + len > data_end ? NULL : ip;
}

/* Timestamps as common stacks lay them out; false where there may be some elsewhere. */
static __always_inline bool read_timestamps(struct xdp_md *ctx, struct segment *segment)
{
	__u32 options_len = segment->payload_off - HEADERS_LEN;
	struct timestamps timestamps;
	struct iphdr *ip;
	__be32 *words;

	segment->has_timestamps = false;
	segment->tsecr = 0;
	if (!options_len)
		return true;
	ip = ip_at(ctx, segment->packet.off, HEADERS_LEN + 12);
	if (!ip || options_len < 12)
		return false;
	words = (void *)ip + HEADERS_LEN;
	timestamps = read_usual_timestamps(words, words + USUAL_TIMESTAMPS_WORDS, options_len);
	if (timestamps.found) {
		segment->has_timestamps = true;
		segment->tsecr = timestamps.tsecr;
		return true;
	}
	/* SACK and nothing else: a client without timestamps */
	return (words[0] & bpf_htonl(0xffffff00)) == bpf_htonl(USUAL_SACK) &&
	       (bpf_ntohl(words[0]) & 0xff) + 2 == options_len;
}

/* Whether the frame has so many octets; asking for all of its buffers takes longer. */
static __always_inline bool is_within(struct xdp_md *ctx, __u32 len)
{
	return len <= ctx->data_end - ctx->data || len <= bpf_xdp_get_buff_len(ctx);
}

/* Read the segment of a frame, if it is a plain one. */
static __always_inline bool read_frame(struct xdp_md *ctx, struct segment *segment)
{
	struct cursor cursor = cursor_of(ctx);
	struct tcphdr *tcp;

	if (family_of(read_ethernet(&cursor)) != FAMILY_IPV4)
		return false;
	segment->packet.off = sizeof(struct ethhdr);
	tcp = read_segment(&cursor, segment);
	return tcp && !may_be_unfinished(segment, tcp) &&
	       is_within(ctx, segment->packet.off + segment->packet.len);
}

/* Whether a host on the network can have this source, and it is not the VIP (RFC 1122 §3.2.1.3). */
static __always_inline bool may_be_answered(const struct five_tuple *five_tuple)
{
	__u8 first = bpf_ntohl(five_tuple->saddr) >> 24;

	return first && first != 127 && first < 224 && five_tuple->saddr != five_tuple->daddr;
}
